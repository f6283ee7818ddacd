"""The config.json of a model that came in, as it goes out again: its model type, and the keys that are kept."""

import json
from dataclasses import replace
from typing import Any

import pytest

from threadloom.stages.models import Geometry, geometry_of_huggingface, huggingface_config

SIZES = {
    "vocab_size": 37, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 5, "num_attention_heads": 3,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
GPT2 = {"vocab_size": 37, "n_positions": 64, "n_embd": 12, "n_layer": 2, "n_head": 3}
FOLDER = {
    "_name_or_path": "/home/me/model", "transformers_version": "4.40.1", "torch_dtype": "bfloat16", "dtype": "bfloat16",
    "auto_map": {"AutoModel": "code.Model"},
}  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 36}

CAME_IN: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"bos_token_id": 36, "eos_token_id": 36, "attn_pdrop": 0.1, "summary_type": "cls_index"},
    "llama": SIZES | TOKENS | {"rope_theta": 1e5, "pretraining_tp": 1, "is_llama_config": True, "use_cache": True},
    "mistral": SIZES | TOKENS | {"rope_theta": 1e6, "sliding_window": None, "initializer_range": 0.02},
    "qwen2": SIZES | TOKENS | {"rope_theta": 1e6, "use_sliding_window": False, "max_window_layers": 4},
    "qwen3": SIZES | TOKENS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 4},
    "smollm3": SIZES | TOKENS | {"rope_theta": 5e6, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
}
"""Model type → keys as published models have them."""


def written(came_in: dict[str, Any], end_of_text: int | None = 0, geometry: Geometry | None = None) -> dict[str, Any]:
    content = json.dumps(came_in).encode()
    return huggingface_config(geometry or geometry_of_huggingface(content), end_of_text, content)


@pytest.mark.parametrize("model_type", CAME_IN)
@pytest.mark.parametrize("context", [64, 16])
def test_the_model_type_and_harmless_keys_return(model_type: str, context: int) -> None:
    came_in = {"model_type": model_type, **CAME_IN[model_type]}
    geometry = replace(geometry_of_huggingface(json.dumps(came_in).encode()), context=context)
    config = written(came_in | FOLDER, geometry=geometry)
    assert geometry_of_huggingface(json.dumps(config).encode()) == geometry
    length = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    assert {key: config[key] for key in came_in} == came_in | {length: context}
    assert not FOLDER.keys() & config.keys()
    assert written(config, geometry=geometry) == config


@pytest.mark.parametrize("model_type", CAME_IN)
def test_a_file_of_another_model_is_ignored(model_type: str) -> None:
    came_in = {"model_type": model_type, **CAME_IN[model_type], "note": "kept"}
    geometry = geometry_of_huggingface(json.dumps(came_in).encode())
    assert written(came_in)["note"] == "kept"
    found = written(came_in, geometry=replace(geometry, vocabulary=38))
    assert "note" not in found
    assert found["eos_token_id"] == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"model_type": "bert"}', b"[" * 100_000])
def test_a_file_that_is_no_configuration_is_ignored(content: bytes) -> None:
    geometry = Geometry(37, 64, 2, 3, 12)
    assert huggingface_config(geometry, 5, content) == huggingface_config(geometry, 5)


def test_the_end_of_a_text_is_added_where_none_came_in() -> None:
    config = written({"model_type": "llama", **SIZES}, end_of_text=7)
    assert [config[key] for key in TOKENS] == [7, 7, None]


def test_what_changes_the_computation_is_that_of_the_model_here() -> None:
    """A window without effect, layers of two kinds, another name of SiLU, and the lengths that repeat the context."""
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2, "hidden_act": "swish"}
    kinds = {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 3}
    config = written({"model_type": "qwen2", **SIZES, **window, **kinds})
    assert (config["use_sliding_window"], config["sliding_window"], config["hidden_act"]) == (False, None, "silu")
    assert config["layer_types"] == ["full_attention"] * 5
    mistral = written({"model_type": "mistral", **SIZES})
    assert mistral["sliding_window"] is None, "the class's default is 4096"
    assert written({"model_type": "gpt2", **GPT2, "n_ctx": 64}, geometry=Geometry(37, 9, 2, 3, 12))["n_ctx"] == 9


def test_rotary_positions_are_written_in_both_spellings_if_the_new_one_came_in() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    came_in = {**llama3, "original_max_position_embeddings": 32, "rope_theta": 5e5}
    config = written({"model_type": "llama", **SIZES, "rope_parameters": came_in})
    assert config["rope_parameters"] == came_in
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {key: value for key, value in came_in.items() if key != "rope_theta"}
    assert "rope_parameters" not in written({"model_type": "llama", **SIZES, "rope_theta": 5e5})


def test_layers_of_smollm3_that_all_have_rotary_positions_are_named() -> None:
    config = written({"model_type": "smollm3", **SIZES, "no_rope_layers": [1, 1, 1, 1, 1]})
    assert (config["model_type"], config["no_rope_layers"]) == ("smollm3", [1, 1, 1, 1, 1])
