"""Writing config.json of the Llama family in Hugging Face's layout, in the spelling that all versions read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from threadloom.stages.models.architecture import UnsupportedModelError
from threadloom.stages.models.huggingface_config import merged_config
from threadloom.stages.models.llama_config import FULL_ATTENTION, geometry_of
from threadloom.stages.models.llama_families import FAMILIES, Family
from threadloom.stages.models.llama_geometry import LlamaGeometry, Rotary

OWN_MODEL_TYPE = "threadloom_llama"
"""`model_type` of a variant that no class of transformers computes, so that none opens it by mistake."""


def config_of(
    geometry: LlamaGeometry, end_of_text: int | None, came_in: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of config.json for the family that came in, or else the first that describes the geometry.

    `end_of_text` is the id of the token that begins and ends texts; for `came_in` see `HuggingFaceLayout.config`.
    """
    came_in = came_in or {}
    # null where a class has another default
    tokens = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None}
    otherwise = {"attention_dropout": 0.0, **tokens}
    named = FAMILIES.get(came_in.get("model_type", ""))
    for family in (named, *FAMILIES.values()):
        if family is None or geometry.rotary.dimensions is not None:
            continue
        names = {"architectures": [family.causal_model], "model_type": family.model_type}
        kept = came_in if family is named else {}
        config = merged_config(kept, names | _content(geometry, family, kept), otherwise)
        if _describes(config, geometry):
            return config
    return {"architectures": [], "model_type": OWN_MODEL_TYPE, **_content(geometry, None, {}), **otherwise}


def _describes(config: dict[str, Any], geometry: LlamaGeometry) -> bool:
    try:
        return geometry_of(json.dumps(config).encode()) == replace(geometry, lora=None)
    except UnsupportedModelError:
        return False


def _content(geometry: LlamaGeometry, family: Family | None, came_in: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that decide the computation; those that a class does not know are ignored by it.

    Keys that only some files have, and that repeat others, are written if they came in.
    """
    content: dict[str, Any] = {
        "vocab_size": geometry.vocabulary,
        "hidden_size": geometry.channels,
        "intermediate_size": geometry.mlp_width,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.kv_heads,
        "head_dim": geometry.head_size,
        "max_position_embeddings": geometry.context,
        "rms_norm_eps": geometry.epsilon,
        "hidden_act": "silu",
        "rope_theta": geometry.rotary.theta,
        "rope_scaling": _scaling(geometry.rotary),
        "attention_bias": geometry.attn_proj_bias,
        "mlp_bias": geometry.mlp_bias,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": geometry.tied,
    }
    if "rope_parameters" in came_in:
        scaling = _scaling(geometry.rotary) or {"rope_type": "default"}
        content["rope_parameters"] = scaling | {"rope_theta": geometry.rotary.theta}
    if "layer_types" in came_in:
        content["layer_types"] = [FULL_ATTENTION] * geometry.layers
    if geometry.rotary.dimensions is not None:
        content["partial_rotary_factor"] = geometry.rotary.dimensions / geometry.head_size
    without = geometry.layers_without_rotary
    if without or (family is not None and "no_rope_layers" not in family.fixed):
        content["no_rope_layers"] = [int(layer not in without) for layer in range(geometry.layers)]
    return content


def _scaling(rotary: Rotary) -> dict[str, Any] | None:
    """Return `rope_scaling`; null if the frequencies are not scaled."""
    if rotary.llama3 is not None:
        return {
            "rope_type": "llama3",
            "factor": rotary.llama3.factor,
            "low_freq_factor": rotary.llama3.low_freq_factor,
            "high_freq_factor": rotary.llama3.high_freq_factor,
            "original_max_position_embeddings": rotary.llama3.original_context,
        }
    return {"rope_type": "linear", "factor": rotary.linear_factor} if rotary.linear_factor != 1.0 else None
