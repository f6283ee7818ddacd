"""Adapters in PEFT's layout: what is read and merged, and what is refused by name."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.adapter_folder import (
    ALPHA,
    PLACES,
    RANK,
    WIDTHS,
    adapter_tensors,
    matrix,
    write_adapter_folder,
    write_base,
)
from tests.stages.checkpoint.llama_folder import CONFIG, Tensors, tensors_of
from threadloom.stages.checkpoint import load_merged
from threadloom.stages.checkpoint.adapter_writer import adapter_config
from threadloom.stages.models import Geometry, Lora, huggingface_views
from threadloom.stages.storage import CheckpointError, base_folder, is_adapter_folder, read_adapter_config

EPS = float(np.finfo(np.float32).eps)
EMBEDDING, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """Return the list that warnings are added to."""
    found: list[str] = []
    handler = logger.add(lambda message: found.append(str(message)), level="WARNING", format="{message}")
    yield found
    logger.remove(handler)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def merged(folder: Path, base: Path) -> Tensors:
    """Return the merged model by Hugging Face's names."""
    geometry, weights = load_merged(folder, base)
    return huggingface_views(weights, geometry)


@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_merged_matrices_are_the_sum_in_float32(base: Path, tmp_path: Path, rslora: bool, scale: float) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base, use_rslora=rslora)
    found, expected, adapters = merged(folder, base), tensors_of(CONFIG), adapter_tensors()
    for layer in range(CONFIG["num_hidden_layers"]):
        for module in WIDTHS:
            name = f"model.layers.{layer}.{PLACES[module]}.weight"
            a, b = (adapters[matrix(layer, module, side)].astype(np.float64) for side in "AB")
            exact = expected.pop(name) + scale * (b @ a)
            # RANK products and sums, the factor and the addition: RANK + 2 roundings of the sum of magnitudes.
            magnitude = np.abs(found[name]) + scale * (np.abs(b) @ np.abs(a))
            assert (np.abs(found[name] - exact) <= (RANK + 2) * EPS * magnitude).all(), name
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_number_formats_of_adapters_are_converted(base: Path, tmp_path: Path) -> None:
    halves = {name: tensor.astype(np.float16) for name, tensor in adapter_tensors().items()}
    found = merged(write_adapter_folder(tmp_path / "half", base, halves), base)  # type: ignore[arg-type]
    singles = {name: tensor.astype(np.float32) for name, tensor in halves.items()}
    expected = merged(write_adapter_folder(tmp_path / "single", base, singles), base)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["self_attn.q_proj", "v_proj", "model.layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj", "o_proj", "gate_proj", "mlp.up_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*(k|o|gate|up)_proj"},
        {"target_modules": r".*(q_proj|v_proj|down_proj)"},
        {"target_modules": "(.+)+(.+)+(.+)+!"},  # takes forever if it is evaluated, and need not be
        {"target_modules": None},
        {"layers_to_transform": [], "rank_pattern": {}, "lora_bias": False, "target_parameters": None},
        {"init_lora_weights": "gaussian", "fan_in_fan_out": True, "lora_dropout": 0.1, "inference_mode": False},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_spellings_of_the_same_adapters(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    expected = merged(write_adapter_folder(tmp_path / "plain", base), base)
    found = merged(write_adapter_folder(tmp_path / "other", base, **changes), base)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type = LORA, got 'IA3'"),
        ({"peft_type": None}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type = CAUSAL_LM, got 'SEQ_CLS'"),
        ({"bias": "lora_only"}, "expected bias = none"),
        ({"use_dora": True}, r"expected no use_dora, got True \(a learned magnitude of every column \(DoRA\)\)"),
        ({"use_qalora": True}, "no use_qalora"),
        ({"lora_bias": True}, "no lora_bias"),
        ({"rank_pattern": {"q_proj": 8}}, "no rank_pattern, got {'q_proj': 8}"),
        ({"alpha_pattern": {"q_proj": 8}}, "no alpha_pattern"),
        ({"layers_to_transform": 0}, "no layers_to_transform, got 0"),
        ({"layers_to_transform": [1]}, "no layers_to_transform"),
        ({"target_parameters": ["mlp.experts"]}, "no target_parameters"),
        ({"trainable_token_indices": [3]}, "no trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "no layer_replication"),
        ({"alora_invocation_tokens": [5]}, "no alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights that leaves the model as it is"),
        ({"init_lora_weights": "loftq"}, "PEFT changes the weights of the model"),
        ({"r": 0}, r"`int` >= 1"),
        ({"r": "three"}, "`int`"),
        ({"r": 10**30}, "out of range|65536"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"target_modules": 5}, "target_modules"),
        ({"r": 4}, r"expected .*lora_A\.weight of shape \(4, 12\), got shape \(3, 12\)"),
        (
            {"target_modules": ["q_proj"]},
            "adapters of target_modules only, got one of .*down_proj and 3 more in addition",
        ),
        ({"target_modules": ["q_proj", "v_proj", "mlp.down_proj", "o_proj"]}, "adapters of all 8 target_modules"),
        ({"target_modules": "all-linear"}, "adapters of all 14 target_modules, got none of"),
        ({"exclude_modules": ["q_proj"]}, "q_proj and 1 more in addition"),
        ({"modules_to_save": ["norm"]}, "tensors of modules_to_save, got no .*input_layernorm"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_configurations_that_compute_something_else(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_merged(folder, base)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00", b'{"r": 1}', b"[" * 100_000])
def test_a_configuration_that_is_none(base: Path, tmp_path: Path, content: bytes) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="the configuration of LoRA adapters as JSON"):
        read_adapter_config(folder)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def renamed(pattern: str, by: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, by, name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(matrix(1, "v_proj", "B")), r"layers\.1\.self_attn\.v_proj\.lora_B\.weight missing"),
        (without(matrix(1, "v_proj", "A"), matrix(1, "v_proj", "B")), "none of model.layers.1.self_attn.v_proj"),
        (renamed(r"base_model\.model\.", ""), r"names that begin with base_model\.model\., got model\.layers"),
        (renamed(r"lora_(.)\.weight", r"lora_\1.default.weight"), "adapters are of another model"),
        (renamed(r"layers\.1\.", "layers.2."), "adapters are of another model"),
        (renamed(r"v_proj", "w_proj"), "adapters are of another model"),
        (renamed(r"model\.layers\.0\.self_attn\.q_proj", "lm_head"), "cannot have any here"),
        (lambda tensors: {}, "expected tensors of adapters, got none"),
        (lambda tensors: tensors | {matrix(0, "q_proj", "A"): np.zeros((RANK, 13), np.float32)}, "another rank"),
        (lambda tensors: tensors | {matrix(0, "q_proj", "A"): np.zeros((RANK,), np.float32)}, "another rank"),
        (lambda tensors: tensors | {matrix(0, "q_proj", "A"): np.zeros((RANK, 12), np.int8)}, "I8"),
        (lambda tensors: tensors | {EMBEDDING: np.zeros((38, 12), np.float32)}, r"shape \(37, 12\)"),
        (
            lambda tensors: tensors | {"base_model.model.model.layers.0.input_layernorm.weight": np.ones(12, "f4")},
            "layers.1.input_layernorm.weight as well",
        ),
    ],
    ids=range(13),
)
def test_files_of_other_adapters(
    base: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base, change(adapter_tensors()))
    with pytest.raises(CheckpointError, match=message):
        load_merged(folder, base)


def test_an_expression_that_selects_some_layers_is_refused(base: Path, tmp_path: Path) -> None:
    tensors = without(matrix(0, "v_proj", "A"), matrix(0, "v_proj", "B"))(adapter_tensors())
    folder = write_adapter_folder(tmp_path / "adapter", base, tensors, target_modules=r".*(q_proj|1.*v_proj|down_proj)")
    with pytest.raises(CheckpointError, match=r"self_attn\.v_proj in one of the layers 0 and 1, but not in the other"):
        load_merged(folder, base)


def test_a_truncated_file_and_a_pickle(base: Path, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        load_merged(folder, base)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="a pickle, which can run code"):
        load_merged(folder, base)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: expected a safetensors file"):
        load_merged(folder, base)


def test_unknown_keys_and_nan_are_reported(base: Path, tmp_path: Path, messages: list[str]) -> None:
    tensors = adapter_tensors()
    tensors[matrix(1, "q_proj", "B")][2, 1] = np.nan
    folder = write_adapter_folder(tmp_path / "adapter", base, tensors, tomorrow={"x": 1}, nothing=None)
    load_merged(folder, base)
    assert len(messages) == 2
    assert "ignored keys that are not known here: tomorrow\n" in messages[0]
    assert f"NaN or infinity in {matrix(1, 'q_proj', 'B')}" in messages[1]


def test_tensors_that_are_saved_as_a_whole(base: Path, tmp_path: Path) -> None:
    whole = {EMBEDDING: np.full((37, 12), 2.0, "f4"), "base_model.model.model.norm.weight": np.full(12, 3.0, "f4")}
    modules = ["embed_tokens", "model.norm"]
    folder = write_adapter_folder(tmp_path / "adapter", base, adapter_tensors() | whole, modules_to_save=modules)
    found = merged(folder, base)
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found[name.removeprefix("base_model.model.")], tensor)


def test_a_module_that_is_saved_has_no_adapter(base: Path, tmp_path: Path) -> None:
    stored = tensors_of(CONFIG)
    whole = {f"base_model.model.{name}": stored[name] for name in stored if "mlp.down_proj" in name}
    folder = write_adapter_folder(tmp_path / "adapter", base, adapter_tensors() | whole, target_modules=".*")
    with pytest.raises(CheckpointError, match=r"modules that are not saved as a whole, got those of .*down_proj"):
        load_merged(folder, base)


def test_a_tied_embedding_is_saved_under_both_names(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    embedding = np.full((37, 12), 2.0, np.float32)
    tensors = adapter_tensors() | {EMBEDDING: embedding}
    folder = tmp_path / "adapter"
    with pytest.raises(CheckpointError, match=r"expected both model\.embed_tokens\.weight and lm_head\.weight"):
        load_merged(write_adapter_folder(folder, base, tensors, modules_to_save=["embed_tokens"]), base)
    with pytest.raises(CheckpointError, match="PEFT has trained two copies"):
        load_merged(write_adapter_folder(folder, base, tensors | {HEAD: embedding + 1}), base)
    found = merged(write_adapter_folder(folder, base, tensors | {HEAD: embedding}), base)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], embedding)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/model-1B", r"no such folder \(.*name of a model on a hub.*--base"),
        (None, "got null"),
        ("", "got '', a folder without a model|got ''"),
    ],
)
def test_a_base_model_that_is_not_here(base: Path, tmp_path: Path, name: str | None, message: str) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base, base_model_name_or_path=name)
    config = read_adapter_config(folder)
    with pytest.raises(CheckpointError, match=message):
        base_folder(folder, config)
    assert base_folder(folder, config, base) == base
    with pytest.raises(CheckpointError, match=r"the folder of a model in Hugging Face's layout, got a folder without"):
        base_folder(folder, config, tmp_path)


def test_a_folder_with_a_whole_model_is_not_one_of_adapters(base: Path, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "adapter", base)
    assert is_adapter_folder(folder)
    assert not is_adapter_folder(base)
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert not is_adapter_folder(folder)


GPT2 = Geometry(13, 5, 2, 2, 4)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"attn.c_attn"}, ["c_attn"]),
        ({"attn.c_proj"}, ["attn.c_proj"]),
        ({"attn.c_proj", "mlp.c_proj", "mlp.c_fc"}, ["c_fc", "c_proj"]),
    ],
)
def test_the_names_written_are_short_and_unambiguous(modules: set[str], expected: list[str]) -> None:
    geometry = Geometry(13, 5, 2, 2, 4, lora=Lora(2, 4.0, frozenset(modules)))
    content = adapter_config(geometry, {"ln1_weight", "ln1_bias", "wte"}, "/base")
    assert content["target_modules"] == expected
    assert content["modules_to_save"] == ["lm_head", "ln_1", "wte"]
    assert (content["fan_in_fan_out"], content["ensure_weight_tying"], content["lora_alpha"]) == (True, True, 4)
    assert json.loads(json.dumps(content)) == content
