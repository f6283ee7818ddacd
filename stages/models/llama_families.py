"""The model types of the Llama family in Hugging Face's layout: the values of absent keys, and fixed values.

A table of the defaults of the classes in transformers 5.24; older versions have the same, except that they write
`rope_theta` and `rope_scaling` in place of `rope_parameters`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A model type: `config.json` is read as `defaults`, changed by the file, changed by `fixed`."""

    model_type: str
    causal_model: str
    """The class in transformers."""
    defaults: Mapping[str, Any]
    """Values of keys that a file may lack."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys that the class does not read."""
    qkv_bias: bool = False
    """True: queries, keys and values have biases in every model of the class."""
    qk_norm: bool = False
    """True: queries and keys pass an RMS norm."""


_NO_WINDOW = {"use_sliding_window": False}
_ALL_ROTARY = {"no_rope_layers": None, "no_rope_layer_interval": 0}
_QWEN_WINDOW = {"sliding_window": 4096, "max_window_layers": 28}

_FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        defaults={"max_position_embeddings": 2048},
        fixed=_NO_WINDOW | _ALL_ROTARY,
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        defaults={"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
        fixed={"use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
        | {"attention_bias": False, "mlp_bias": False}
        | _ALL_ROTARY,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        defaults={"max_position_embeddings": 32_768, "num_key_value_heads": 32, **_QWEN_WINDOW},
        fixed={"attention_bias": False, "mlp_bias": False} | _ALL_ROTARY,
        qkv_bias=True,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        defaults={"max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOW},
        fixed={"mlp_bias": False} | _ALL_ROTARY,
        qk_norm=True,
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        defaults={
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
        },
    ),
)

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _FAMILIES}
"""`model_type` → family."""
