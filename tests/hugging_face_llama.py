"""Hugging Face's models of the Llama family, with the sizes and weights of the reference."""

from collections.abc import Iterator
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from tests import reference
from tests.reference import Array, LlamaSizes, Rotary, Tensors


class Family(Enum):
    """A family of models; the value is the prefix of its classes' names."""

    LLAMA = "Llama"
    MISTRAL = "Mistral"
    QWEN2 = "Qwen2"
    QWEN3 = "Qwen3"
    SMOLLM3 = "SmolLM3"


def hugging_face_model(family: Family, sizes: LlamaSizes, context: int = 64) -> Any:
    """Return a model with random weights, in float32. Each family has some of the variants of `LlamaSizes`."""
    import transformers

    biases = {"attention_bias": sizes.attn_proj_bias, "mlp_bias": sizes.mlp_bias}
    of_family: dict[Family, dict[str, Any]] = {
        Family.LLAMA: {"head_dim": sizes.head_size, **biases},
        Family.MISTRAL: {"head_dim": sizes.head_size, "sliding_window": None},
        Family.QWEN2: {},
        Family.QWEN3: {"head_dim": sizes.head_size, "attention_bias": sizes.attn_proj_bias},
        Family.SMOLLM3: {
            **biases,
            "no_rope_layers": [int(layer not in sizes.layers_without_rotary) for layer in range(sizes.layers)],
            "pad_token_id": None,
        },
    }
    config = getattr(transformers, f"{family.value}Config")(
        vocab_size=sizes.vocabulary, hidden_size=sizes.channels, intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=context, rms_norm_eps=sizes.epsilon, rope_parameters=rope_parameters(sizes.rotary),
        tie_word_embeddings=sizes.tied, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
        **of_family[family],
    )  # fmt: skip
    return getattr(transformers, f"{family.value}ForCausalLM")(config)


def rope_parameters(rotary: Rotary) -> dict[str, Any]:
    """Return the settings of rotary positions in the spelling of transformers 5."""
    scaling = rotary.llama3
    if scaling:
        return {
            "rope_type": "llama3", "rope_theta": rotary.theta, "factor": scaling.factor,
            "low_freq_factor": scaling.low_factor, "high_freq_factor": scaling.high_factor,
            "original_max_position_embeddings": scaling.context,
        }  # fmt: skip
    if rotary.linear_factor != 1.0:
        return {"rope_type": "linear", "rope_theta": rotary.theta, "factor": rotary.linear_factor}
    return {"rope_type": "default", "rope_theta": rotary.theta}


def parts(tensors: Tensors, sizes: LlamaSizes) -> Iterator[tuple[str, str, Array]]:
    """Yield the name here, the name in Hugging Face's layout and the values of every parameter, or of its gradient.

    Their matrices are stored (outputs, inputs), and those of queries, keys and values, of gate and up are separate.
    """
    of_model = {"wte": "model.embed_tokens.weight", "head": "lm_head.weight", "normf_weight": "model.norm.weight"}
    attn, kv = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    splits = {
        "qkv": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), [attn, attn + kv]),
        "attn_proj": (("self_attn.o_proj",), []),
        "gate_up": (("mlp.gate_proj", "mlp.up_proj"), [sizes.mlp_width]),
        "down": (("mlp.down_proj",), []),
        "norm1": (("input_layernorm",), []),
        "norm2": (("post_attention_layernorm",), []),
        "q_norm": (("self_attn.q_norm",), []),
        "k_norm": (("self_attn.k_norm",), []),
    }
    for name, tensor in tensors.items():
        if name in of_model:
            yield name, of_model[name], tensor
            continue
        module, _, kind = name.rpartition("_")
        theirs, columns = splits[module]
        for layer, values in enumerate(tensor):
            for part, of_part in zip(theirs, np.split(values, columns, axis=-1), strict=True):
                yield name, f"model.layers.{layer}.{part}.{kind}", of_part.T


def load(model: Any, weights: Tensors, sizes: LlamaSizes) -> None:
    """Copy weights into a model, all of its parameters."""
    import torch

    parameters = dict(model.named_parameters())
    values = {theirs: values for _, theirs, values in parts(weights, sizes)}
    assert parameters.keys() == values.keys()
    with torch.no_grad():
        for name, array in values.items():
            parameters[name].copy_(torch.tensor(array))


def compute_in_float64(model: Any, sizes: LlamaSizes) -> None:
    """Turn a model into float64 throughout: the published code computes norms and rotary angles in float32."""
    import torch

    def norm(module: Any, x: Any) -> Any:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)

    def tables(x: Any, position_ids: Any) -> Any:
        both = reference.rotary_tables(sizes.rotary, sizes.head_size, position_ids.shape[1])
        return tuple(torch.tensor(np.concatenate([table, table], axis=-1))[None] for table in both)

    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(norm, module)
    model.model.rotary_emb.forward = tables
