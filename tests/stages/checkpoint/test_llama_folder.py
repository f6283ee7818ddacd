"""Models of the Llama family in Hugging Face's layout: each tensor is found in its place."""

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.llama_folder import CONFIG, Tensors, tensors_of, write_folder
from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import model_reader
from threadloom.stages.checkpoint.model_reader import FolderWeights, load_model
from threadloom.stages.models import Geometry, LlamaGeometry, parameter_shapes
from threadloom.stages.storage import CheckpointError, read_geometry

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def assert_weights(weights: Arena, tensors: Tensors, config: dict[str, Any]) -> None:
    """Compare every element of the arena with the tensors of a folder."""
    layers, inner = range(config["num_hidden_layers"]), config["intermediate_size"]
    compared = {"wte": tensors[EMBEDDING], "normf_weight": tensors["model.norm.weight"]}
    if HEAD in tensors:
        compared["head"] = tensors[HEAD]

    def stacked(name: str) -> np.ndarray:
        return np.stack([tensors[f"model.layers.{layer}.{name}"] for layer in layers])

    def side_by_side(names: tuple[str, ...], kind: str) -> np.ndarray:
        """Return the outputs of several matrices side by side, with (inputs, outputs) per layer."""
        joined = np.concatenate([stacked(f"{name}.{kind}") for name in names], axis=1)
        return joined.swapaxes(1, 2) if kind == "weight" else joined

    qkv = tuple(f"self_attn.{name}_proj" for name in "qkv")
    gate_up = ("mlp.gate_proj", "mlp.up_proj")
    fused = {"qkv": qkv, "gate_up": gate_up, "attn_proj": ("self_attn.o_proj",), "down": ("mlp.down_proj",)}
    for name, theirs in fused.items():
        compared[f"{name}_weight"] = side_by_side(theirs, "weight")
        if f"model.layers.0.{theirs[0]}.bias" in tensors:
            compared[f"{name}_bias"] = side_by_side(theirs, "bias")
    compared["norm1_weight"] = stacked("input_layernorm.weight")
    compared["norm2_weight"] = stacked("post_attention_layernorm.weight")
    if "model.layers.0.self_attn.q_norm.weight" in tensors:
        compared["q_norm_weight"] = stacked("self_attn.q_norm.weight")
        compared["k_norm_weight"] = stacked("self_attn.k_norm.weight")
    assert set(weights) == set(compared)
    assert weights["gate_up_weight"].shape == (len(layers), config["hidden_size"], 2 * inner)
    for name, expected in compared.items():
        np.testing.assert_array_equal(weights[name], expected, err_msg=name)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", "sliding_window": None},
    {"model_type": "qwen2"},
    {"model_type": "qwen3", "attention_bias": True},
    {"model_type": "smollm3", "tie_word_embeddings": True},
]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_tensor_is_read_into_its_place(tmp_path: Path, changes: dict[str, Any], shards: int) -> None:
    config = CONFIG | changes
    tensors = tensors_of(config)
    geometry, weights = load_model(write_folder(tmp_path, config, tensors, shards))
    assert isinstance(geometry, LlamaGeometry)
    assert_weights(weights, tensors, config)


def test_half_precision_is_converted(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    write_folder(tmp_path, CONFIG, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    _, weights = load_model(tmp_path)
    assert_weights(
        weights, {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in tensors.items()}, CONFIG
    )


@pytest.mark.parametrize("prefix", ["", "model.model.", "_orig_mod.model.", "module.model."])
def test_prefixes_and_the_frequencies_of_old_files_are_known(tmp_path: Path, prefix: str) -> None:
    tensors = tensors_of(CONFIG)
    renamed = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    renamed |= {f"{prefix}layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for layer in range(2)}
    _, weights = load_model(write_folder(tmp_path, CONFIG, renamed))
    assert_weights(weights, tensors, CONFIG)


TIED = CONFIG | {"tie_word_embeddings": True}


def test_a_tied_head_may_be_stored_if_it_is_equal(tmp_path: Path) -> None:
    tensors = tensors_of(TIED)
    _, weights = load_model(write_folder(tmp_path, TIED, tensors | {HEAD: tensors[EMBEDDING]}))
    assert_weights(weights, tensors, TIED)
    write_folder(tmp_path, TIED, tensors | {HEAD: tensors[EMBEDDING] + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight equal to model\.embed_tokens\.weight") as caught:
        load_model(tmp_path)
    assert '"tie_word_embeddings": false' in (caught.value.hint or "")
    write_folder(tmp_path, CONFIG, tensors | {HEAD: tensors[EMBEDDING] + 1})  # the remedy
    load_model(tmp_path)


def test_a_tied_head_alone_is_the_embedding_too(tmp_path: Path) -> None:
    tensors = tensors_of(TIED)
    renamed = {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()}
    _, weights = load_model(write_folder(tmp_path, TIED, renamed))
    assert_weights(weights, tensors, TIED)


def test_a_head_that_is_missing_is_reported_with_the_key_that_ties_it(tmp_path: Path) -> None:
    write_folder(tmp_path, CONFIG, tensors_of(TIED))
    with pytest.raises(CheckpointError, match=r'lm_head\.weight missing.*"tie_word_embeddings": true in config\.json'):
        load_model(tmp_path)


def test_wrong_missing_and_additional_tensors_are_named(tmp_path: Path) -> None:
    tensors, name = tensors_of(CONFIG), "model.layers.1.self_attn.k_proj.weight"
    write_folder(tmp_path, CONFIG, tensors | {name: np.zeros((24, 12), np.float32)})  # as many as query heads
    with pytest.raises(CheckpointError, match=re.escape(f"{name} of shape (8, 12), got shape (24, 12)")):
        load_model(tmp_path)
    write_folder(tmp_path, CONFIG, {key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=re.escape(f"{name} missing")):
        load_model(tmp_path)
    bias = "model.layers.0.self_attn.q_proj.bias"
    write_folder(tmp_path, CONFIG, tensors | {bias: np.zeros(24, np.float32)})
    with pytest.raises(CheckpointError, match=re.escape(f"{bias} in addition to them")):
        load_model(tmp_path)


def test_tensors_with_nan_or_infinity_are_named_in_a_warning(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    tensors["model.norm.weight"][5] = -np.inf
    write_folder(tmp_path, CONFIG, tensors)
    messages: list[str] = []
    handler = logger.add(messages.append, level="WARNING", format="{message}")
    try:
        load_model(tmp_path)
    finally:
        logger.remove(handler)
    assert len(messages) == 1
    assert "NaN or infinity in model.layers.1.mlp.up_proj.weight, model.norm.weight" in messages[0]


def test_a_warning_does_not_name_finite_parts_of_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are read first leave the rest of the matrix as it was, in new memory or after another layer."""
    tensors = tensors_of(CONFIG)
    tensors["model.layers.0.self_attn.v_proj.weight"][3, 4] = np.nan
    write_folder(tmp_path, CONFIG, tensors)
    messages: list[str] = []
    handler = logger.add(messages.append, level="WARNING", format="{message}")
    monkeypatch.setattr(np, "empty", lambda shape, kind: np.full(shape, np.nan, kind))
    try:
        list(FolderWeights(tmp_path, read_geometry(tmp_path / "config.json")).matrices("qkv_weight"))
    finally:
        logger.remove(handler)
    assert len(messages) == 1
    assert messages[0].split(" in ")[1].startswith("model.layers.0.self_attn.v_proj.weight:")


@pytest.mark.parametrize("shards", [1, 2])
def test_loading_takes_the_memory_of_the_weights_and_of_one_tensor(tmp_path: Path, shards: int) -> None:
    config = CONFIG | {"hidden_size": 64, "intermediate_size": 1024, "num_hidden_layers": 8}
    tensors = tensors_of(config)
    write_folder(tmp_path, config, tensors, shards)
    largest, total = (
        max(tensor.nbytes for tensor in tensors.values()),
        sum(tensor.nbytes for tensor in tensors.values()),
    )
    del tensors
    tracemalloc.start()
    try:
        _, weights = load_model(tmp_path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert weights.nbytes >= total
    assert peak - kept <= largest + 500_000  # names, headers
    assert largest + 500_000 < total / 4, "a second copy of the weights would be noticed"


@pytest.mark.parametrize(
    ("name", "cause"),
    [("pytorch_model.bin", "a pickle"), ("pytorch_model.bin.index.json", "pickles"), ("m.Q4_0.gguf", "another format"),
     ("adapter_model.safetensors", "an adapter"), ("consolidated.safetensors", "Mistral's own format")],
)  # fmt: skip
def test_a_model_in_another_format_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str, cause: str) -> None:
    write_folder(tmp_path, CONFIG, {})
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"got {re.escape(name)} .*{cause}.*save_pretrained"):
        load_model(tmp_path)


def test_a_model_larger_than_memory_is_refused_before_memory_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        memory_available = 1000

    monkeypatch.setattr(model_reader, "detect", Small)
    monkeypatch.setattr(model_reader, "Arena", None)
    write_folder(tmp_path, CONFIG, tensors_of(CONFIG))
    with pytest.raises(CheckpointError, match="fits into the 0 MB of memory that are available, got 3,924 parameters"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 10**12), ("hidden_size", -12), ("num_hidden_layers", 0), ("head_dim", "4"), ("rms_norm_eps", []),
     ("num_attention_heads", 2**70), ("rope_scaling", "linear"), ("intermediate_size", None)],
)  # fmt: skip
def test_a_configuration_with_impossible_values_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write_folder(tmp_path, CONFIG | {key: value}, {})
    with pytest.raises(CheckpointError, match=r"config\.json: expected"):
        load_model(tmp_path)


def test_a_deeply_nested_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json: expected"):
        read_geometry(tmp_path / "config.json")


def test_weights_are_read_for_a_shorter_context_but_not_for_other_sizes(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    geometry = read_geometry(write_folder(tmp_path, CONFIG, tensors) / "config.json")
    assert isinstance(geometry, LlamaGeometry)
    shorter = LlamaGeometry(**{**vars(geometry), "context": 5})
    weights = Arena(parameter_shapes(shorter))
    FolderWeights(tmp_path, shorter).write(weights)
    assert_weights(weights, tensors, CONFIG)
    for other in (LlamaGeometry(**{**vars(geometry), "context": 17}), Geometry(37, 16, 2, 6, 12)):
        with pytest.raises(CheckpointError, match=r"config\.json: expected a model of"):
            FolderWeights(tmp_path, other)
