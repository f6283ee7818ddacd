"""The same model of the Llama family in Hugging Face transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from benchmarks.model_sizes import LlamaSizes


class Llama(nn.Module):  # type: ignore[misc]  # torch has no types here
    """A causal language model of transformers, with PyTorch's fused attention. `forward` returns the mean loss."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        family = "Qwen3" if sizes.qk_norm else "Llama"
        config = getattr(transformers, f"{family}Config")(
            vocab_size=sizes.vocabulary, hidden_size=sizes.channels, intermediate_size=sizes.mlp_width,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
            head_dim=sizes.head_size, max_position_embeddings=sizes.context, rms_norm_eps=sizes.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.theta}, tie_word_embeddings=sizes.tied,
            use_cache=False, attn_implementation="sdpa",
        )  # fmt: skip
        self.model = getattr(transformers, f"{family}ForCausalLM")(config)

    def forward(self, ids: Any, targets: Any) -> Any:
        """Return the mean loss of ids and targets (B, T)."""
        logits = self.model(input_ids=ids).logits
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def theirs(ours: dict[str, Any], sizes: LlamaSizes) -> Iterator[tuple[str, Any]]:
    """Yield name and values in Hugging Face's layout of all of threadloom's tensors."""
    attn, kv = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    matrices = {
        "qkv_weight": (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], [attn, kv, kv]),
        "attn_proj_weight": (["self_attn.o_proj"], [sizes.channels]),
        "gate_up_weight": (["mlp.gate_proj", "mlp.up_proj"], [sizes.mlp_width, sizes.mlp_width]),
        "down_weight": (["mlp.down_proj"], [sizes.channels]),
        "norm1_weight": (["input_layernorm"], [sizes.channels]),
        "norm2_weight": (["post_attention_layernorm"], [sizes.channels]),
        "q_norm_weight": (["self_attn.q_norm"], [sizes.head_size]),
        "k_norm_weight": (["self_attn.k_norm"], [sizes.head_size]),
    }
    of_model = {"wte": "model.embed_tokens.weight", "head": "lm_head.weight", "normf_weight": "model.norm.weight"}
    for name, tensor in ours.items():
        if name in of_model:
            yield of_model[name], tensor
            continue
        modules, widths = matrices[name]
        for layer, values in enumerate(tensor):
            for module, part in zip(modules, values.split(widths, dim=-1), strict=True):
                yield f"model.layers.{layer}.{module}.weight", part.T if part.dim() == 2 else part


def build(sizes: LlamaSizes, weights: Path | None) -> Llama:
    """Return the model, with the weights of a file if one is given."""
    built = Llama(sizes)
    if weights:
        parameters = dict(built.model.named_parameters())
        with torch.no_grad():
            for name, values in theirs(load_file(weights), sizes):
                parameters.pop(name).copy_(values)
        assert not parameters, f"the file lacks {sorted(parameters)}"
    return built
