"""config.json of the Llama family: both spellings, the defaults of each model type, and variants that are refused."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from threadloom.stages.models import Llama3Scaling, LlamaGeometry, Rotary, UnsupportedModelError
from threadloom.stages.models.llama_huggingface import LlamaHuggingFace

LAYOUT = LlamaHuggingFace()
SIZES = {
    "vocab_size": 37,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
GEOMETRY = LlamaGeometry(37, 64, 5, 3, 12, kv_heads=1, head_size=4, mlp_width=20)


def read(model_type: str = "llama", **changes: Any) -> LlamaGeometry:
    """Return the geometry of a config.json; a value of `...` removes its key."""
    content = {name: value for name, value in (SIZES | changes).items() if value is not ...}
    return LAYOUT.geometry(json.dumps({"model_type": model_type, **content}).encode())


def test_the_required_keys_of_a_llama_describe_its_sizes() -> None:
    assert read() == GEOMETRY


@pytest.mark.parametrize(
    ("model_type", "absent"),
    [
        ("llama", {"kv_heads": 3, "context": 2048}),
        ("mistral", {"kv_heads": 8, "context": 131_072}),
        ("qwen2", {"kv_heads": 32, "context": 32_768, "qkv_bias": True}),
        ("qwen3", {"kv_heads": 32, "context": 32_768, "head_size": 128, "qk_norm": True}),
        ("smollm3", {"kv_heads": 4, "context": 32_768, "tied": True, "rotary": Rotary(2e6),
                     "layers_without_rotary": frozenset({3})}),
    ],
)  # fmt: skip
def test_absent_keys_have_the_defaults_of_the_model_type(model_type: str, absent: dict[str, Any]) -> None:
    heads = {
        "num_attention_heads": 3 if model_type == "llama" else 32,
        "hidden_size": 12 if model_type == "llama" else 128,
    }
    window = {"sliding_window": None} if model_type == "mistral" else {}
    found = read(model_type, num_key_value_heads=..., max_position_embeddings=..., **heads, **window)
    assert found == replace(GEOMETRY, heads=heads["num_attention_heads"], channels=heads["hidden_size"], **absent)


def test_null_key_value_heads_are_as_many_as_heads_and_a_null_head_size_is_derived() -> None:
    found = read("qwen3", num_key_value_heads=None, head_dim=None)
    assert (found.kv_heads, found.head_size) == (3, 4)


def test_the_head_size_of_the_file_wins_over_the_quotient() -> None:
    assert read(head_dim=10).head_size == 10
    assert read(head_dim=10, hidden_size=11).channels == 11


LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "rotary"),
    [
        ({"rope_theta": 5e5}, Rotary(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rotary(5e5)),
        ({"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 2}}, Rotary(5e5, linear_factor=2.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "default", "type": "linear"}}, Rotary(5e5)),
        ({"rope_scaling": LLAMA3}, Rotary(1e4, llama3=Llama3Scaling(8.0, 1.0, 4.0, 32))),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, Rotary(5e5, llama3=Llama3Scaling(8.0, 1.0, 4.0, 32))),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rotary(5e5)),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 7e5}, Rotary(5e5)),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e5}, Rotary(7e5)),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
         Rotary(1e4, linear_factor=3.0)),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {}}, Rotary(5e5)),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}, "head_dim": 12}, Rotary(dimensions=6)),
        ({"partial_rotary_factor": 0.5, "head_dim": 12}, Rotary(dimensions=6)),
        ({"partial_rotary_factor": 1.0}, Rotary()),
    ],
)  # fmt: skip
def test_rotary_positions_in_both_spellings(keys: dict[str, Any], rotary: Rotary) -> None:
    assert read(**keys).rotary == rotary


def test_the_original_context_of_llama3_scaling_is_the_context_if_absent() -> None:
    scaling = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    found = read(rope_scaling=scaling).rotary.llama3
    assert found is not None
    assert found.original_context == 64


def test_biases_follow_the_keys_that_the_class_reads() -> None:
    both = {"attention_bias": True, "mlp_bias": True}
    biases = {name: (g.qkv_bias, g.attn_proj_bias, g.mlp_bias) for name in LAYOUT.model_types
              for g in [read(name, sliding_window=None, **both)]}  # fmt: skip
    assert biases == {
        "llama": (True, True, True),
        "mistral": (False, False, False),
        "qwen2": (True, False, False),
        "qwen3": (True, True, False),
        "smollm3": (True, True, True),
    }


@pytest.mark.parametrize(
    ("keys", "without"),
    [
        ({}, {3}),
        ({"no_rope_layer_interval": 2}, {1, 3}),
        ({"no_rope_layers": [1, 0, 1, 1, 0]}, {1, 4}),
        ({"no_rope_layers": [1] * 5}, set()),
    ],
)
def test_layers_without_rotary_positions(keys: dict[str, Any], without: set[int]) -> None:
    assert read("smollm3", **keys).layers_without_rotary == without
    assert not read("llama", **keys).layers_without_rotary


ACCEPTED_WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 64}),
    ("mistral", {"sliding_window": 4096}),
    ("mistral", {}),
    ("qwen2", {"sliding_window": 8}),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 5}),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["full_attention"] * 5}),
    ("smollm3", {"sliding_window": 8, "use_sliding_window": False}),
    ("llama", {"sliding_window": 8}),
]


@pytest.mark.parametrize(("model_type", "keys"), ACCEPTED_WINDOWS)
def test_a_window_without_effect_is_accepted(model_type: str, keys: dict[str, Any]) -> None:
    assert read(model_type, **keys).context == 64


REFUSED_WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"sliding_window": 8, "use_sliding_window": False}),
    ("mistral", {"max_position_embeddings": ...}),  # 131,072, with a window of 4,096
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 4}),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 5}),
    ("smollm3", {"sliding_window": 8, "use_sliding_window": True}),
]


@pytest.mark.parametrize(("model_type", "keys"), REFUSED_WINDOWS)
def test_a_window_in_use_is_refused_with_a_remedy(model_type: str, keys: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="expected attention without a sliding window") as caught:
        read(model_type, **keys)
    assert '"max_position_embeddings"' in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act = "silu" or "swish", got "gelu"'),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 'got "yarn"'),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 'got "dynamic"'),
        ({"rope_parameters": {"rope_type": "longrope"}}, 'got "longrope"'),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one dictionary per kind of layer"),
        ({"rope_scaling": {"type": "linear"}}, "factor above 0, got null"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor above 0, got 0.0"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor above 1, got 1.0"),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}}, "of at least 1, got 0"),
        ({"rope_theta": -1.0}, "rope_theta above 0, got -1.0"),
        ({"partial_rotary_factor": 0.3}, "an even number of the 4 dimensions"),
        ({"partial_rotary_factor": 1.5}, "an even number of the 4 dimensions"),
        ({"quantization_config": {"quant_method": "gptq"}}, "got quantization_config"),
        ({"layer_types": ["linear_attention"] * 5}, 'layer_types "full_attention", got "linear_attention"'),
        ({"rms_norm_eps": 0}, "rms_norm_eps above 0, got 0.0"),
        ({"num_key_value_heads": 2}, "num_key_value_heads that divides num_attention_heads = 3, got 2"),
        ({"num_key_value_heads": 0}, "num_key_value_heads of at least 1, got 0"),
        ({"hidden_size": 13}, "hidden_size that num_attention_heads = 3 divides, got hidden_size = 13"),
        ({"head_dim": 5}, "an even size of the heads, for rotary positions by halves, got 5"),
        ({"head_dim": 0}, "head_dim of at least 1, got 0"),
        ({"vocab_size": 0}, "vocab_size of at least 1, got 0"),
        ({"num_hidden_layers": -3}, "num_hidden_layers of at least 1, got -3"),
        ({"hidden_size": 10**9}, "hidden_size from 1 to 65,536, got 1000000000"),
        ({"vocab_size": 10**30}, "vocab_size"),
    ],
)
def test_what_the_kernels_do_not_compute_is_refused_by_name(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(text)):
        read(**changes)


def test_layers_without_rotary_must_be_as_many_as_layers() -> None:
    with pytest.raises(UnsupportedModelError, match="no_rope_layers with 5 values, got 2"):
        read("smollm3", no_rope_layers=[1, 0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotary": Rotary(5e5, llama3=Llama3Scaling(8.0, 1.0, 4.0, 32))},
        {"rotary": Rotary(5e5, linear_factor=4.0), "tied": True},
        {"qkv_bias": True, "attn_proj_bias": True, "mlp_bias": True, "head_size": 6},
        {"qkv_bias": True},
        {"qk_norm": True, "head_size": 128},
        {"qk_norm": True, "qkv_bias": True, "attn_proj_bias": True},
        {"layers_without_rotary": frozenset({0, 4}), "epsilon": 1e-5},
    ],
)
def test_a_written_configuration_is_read_back(changes: dict[str, Any]) -> None:
    geometry = replace(GEOMETRY, **changes)
    assert LAYOUT.geometry(json.dumps(LAYOUT.config(geometry, 3)).encode()) == geometry


def test_a_variant_without_a_class_in_transformers_has_a_model_type_that_none_opens() -> None:
    config = LAYOUT.config(replace(GEOMETRY, qk_norm=True, mlp_bias=True), None)
    assert config["model_type"] not in LAYOUT.model_types
    assert LAYOUT.config(replace(GEOMETRY, rotary=Rotary(dimensions=2)), None)["model_type"] not in LAYOUT.model_types


def test_each_tensor_of_a_layer_is_a_part_of_ours() -> None:
    geometry = replace(GEOMETRY, kv_heads=1, qkv_bias=True, attn_proj_bias=True, mlp_bias=True, qk_norm=True)
    parts = LAYOUT.parts(geometry)
    key = parts["model.layers.4.self_attn.k_proj.weight"]
    assert (key.tensor, key.layer, key.columns, key.transposed) == ("qkv_weight", 4, (12, 16), True)
    assert key.shape((5, 12, 20)) == (4, 12)
    assert parts["model.layers.0.self_attn.v_proj.bias"].shape((5, 20)) == (4,)
    assert parts["model.layers.0.mlp.up_proj.weight"].shape((5, 12, 40)) == (20, 12)
    assert parts["model.layers.0.mlp.down_proj.weight"].shape((5, 20, 12)) == (12, 20)
    assert len(parts) == 2 + 5 * (2 + 2 + 14) + 1
    assert "lm_head.weight" not in LAYOUT.parts(replace(geometry, tied=True))
