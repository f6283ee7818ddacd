"""Exported models: number formats, shards, the files that came with the model, and failures that leave nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tests.stages.checkpoint.test_huggingface import random_weights
from tests.stages.data.made_tokenizers import MADE
from tests.stages.models.test_huggingface import GEOMETRY
from threadloom.stages.checkpoint import (
    Checkpoint,
    ExportedModel,
    TrainingState,
    export_model,
    load_model,
    read_end_ids,
    save_checkpoint,
)
from threadloom.stages.checkpoint.manifest import read_manifest
from threadloom.stages.checkpoint.shards import divide
from threadloom.stages.models import EndOfText
from threadloom.stages.storage import CheckpointError, StoredFormat, tensor_file

CAME_IN = {
    "tokenizer.json": MADE["qwen"](),
    "tokenizer_config.json": '{"eos_token": "<|im_end|>", "model_max_length": 1000000000000000019884624838656}',
    "generation_config.json": '{"eos_token_id": [2, 0], "top_p": 0.8}',
    "chat_template.jinja": "{{ messages }}\n",
    "special_tokens_map.json": "{}",
}


TEMPLATES = "additional_chat_templates"


def model(folder: Path, weights: Any = None) -> ExportedModel:
    folder.mkdir(exist_ok=True)
    return ExportedModel(folder, random_weights() if weights is None else weights, GEOMETRY, EndOfText(2, "<|im_end|>"))


def content(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("stored", StoredFormat)
@pytest.mark.parametrize("block", [1 << 20, 50])
def test_tensors_are_rounded_once(
    tmp_path: Path, stored: StoredFormat, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "BLOCK", block)
    export_model(model(tmp_path / "in"), tmp_path / "out", stored)
    geometry, found = load_model(tmp_path / "out")
    assert geometry == GEOMETRY
    expected = random_weights().flat
    if stored is StoredFormat.FP16:
        expected = expected.astype(np.float16).astype(np.float32)
    if stored is StoredFormat.BF16:  # half a unit of the last of 8 bits
        np.testing.assert_allclose(found.flat, expected, rtol=2.0**-8)
        assert not (found.flat.view(np.uint32) & 0xFFFF).any()
    else:
        np.testing.assert_array_equal(found.flat, expected)
    names = {StoredFormat.FLOAT32: "float32", StoredFormat.BF16: "bfloat16", StoredFormat.FP16: "float16"}
    assert content(tmp_path / "out", "config.json")["torch_dtype"] == names[stored]


def test_shards_have_an_index_and_a_limited_size(tmp_path: Path) -> None:
    limit = 3000
    files = export_model(model(tmp_path / "in"), tmp_path / "out", StoredFormat.FP16, limit)
    shards = [name for name in files if name.endswith(".safetensors")]
    assert shards == [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    assert len(shards) > 3
    index = content(tmp_path / "out", "model.safetensors.index.json")
    total = 0
    for shard in shards:
        with safe_open(tmp_path / "out" / shard, "np") as file:
            assert file.metadata() == {"format": "pt"}
            names = list(file.keys())
            size = sum(file.get_tensor(name).nbytes for name in names)
        assert size <= limit or len(names) == 1
        assert all(index["weight_map"].pop(name) == shard for name in names)
        total += size
    assert not index["weight_map"]
    assert index["metadata"] == {"total_size": total, "total_parameters": total // 2}
    _, found = load_model(tmp_path / "out")
    np.testing.assert_array_equal(found.flat, random_weights().flat.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(100, [["a", "b", "c", "d"]]), (10, [["a", "b"], ["c"], ["d"]]), (1, [["a"], ["b"], ["c"], ["d"]])],
)
def test_shards_are_filled_in_order(limit: int, expected: list[list[str]]) -> None:
    assert divide({"a": 4, "b": 6, "c": 30, "d": 1}, limit) == expected


def test_the_files_that_came_with_the_model_are_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in CAME_IN.items():
        (tmp_path / "in" / name).write_text(text)
    (tmp_path / "in" / "notes.txt").write_text("not of a model")
    (tmp_path / "in" / TEMPLATES).mkdir()
    (tmp_path / "in" / TEMPLATES / "tools.jinja").write_text("{{ tools }}")
    (tmp_path / "in" / TEMPLATES / "a note.jinja").write_text("no name of a template")
    files = export_model(model(tmp_path / "in"), tmp_path / "out", StoredFormat.FLOAT32)
    assert files == sorted([*CAME_IN, TEMPLATES, "config.json", "model.safetensors"])
    assert [path.read_text() for path in (tmp_path / "out" / TEMPLATES).iterdir()] == ["{{ tools }}"]
    for name, text in CAME_IN.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert content(tmp_path / "out", "config.json")["eos_token_id"] == 2
    assert read_end_ids(tmp_path / "out") == {0, 2}


def test_the_configuration_that_came_in_returns_with_the_number_format(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sizes = {"vocab_size": 37, "n_positions": 11, "n_embd": 12, "n_layer": 3, "n_head": 3}
    came_in = {"model_type": "gpt2", **sizes, "eos_token_id": 36, "task_specific_params": {"a": 1}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(came_in | {"torch_dtype": "float32"}))
    export_model(model(tmp_path / "in"), tmp_path / "out", StoredFormat.BF16)
    found = content(tmp_path / "out", "config.json")
    assert {key: found[key] for key in came_in} == came_in
    assert found["torch_dtype"] == "bfloat16"


def test_without_such_files_they_name_the_end_of_text(tmp_path: Path) -> None:
    files = export_model(model(tmp_path / "in"), tmp_path / "out", StoredFormat.FLOAT32)
    assert files == ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"]
    assert content(tmp_path / "out", "generation_config.json")["eos_token_id"] == 2
    assert content(tmp_path / "out", "tokenizer_config.json")["eos_token"] == "<|im_end|>"


def test_a_checkpoint_has_the_files_that_came_with_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, text in CAME_IN.items():
        (tmp_path / "data" / name).write_text(text)
    (tmp_path / "data" / TEMPLATES).mkdir()
    (tmp_path / "data" / TEMPLATES / "tools.jinja").write_text("{{ tools }}")
    weights = random_weights()
    optimizer = {"m": weights, "v": weights}
    state = TrainingState(0, 0, {0: weights}, optimizer, {}, GEOMETRY, end_of_text=EndOfText(2, "<|im_end|>"))
    path = save_checkpoint(tmp_path / "checkpoints", state, tmp_path / "data" / "tokenizer.json", keep=0)
    for name, text in CAME_IN.items():
        assert (path / name).read_text() == text
    assert {*CAME_IN, f"{TEMPLATES}/tools.jinja"} <= read_manifest(path, "").files.keys()
    assert (path / TEMPLATES / "tools.jinja").read_text() == "{{ tools }}"
    assert Checkpoint.open(path).tokenizer == path / "tokenizer.json"


def test_a_value_beyond_float16_is_refused(tmp_path: Path) -> None:
    weights = random_weights()
    weights["wpe"][3, 1] = -65537.0
    with pytest.raises(CheckpointError, match=r"got 65537 in transformer\.wpe\.weight\. Hint: export it as bf16"):
        export_model(model(tmp_path / "in", weights), tmp_path / "out", StoredFormat.FP16)
    weights["wpe"][3, 1] = np.nan  # of a training that diverged
    export_model(model(tmp_path / "in", weights), tmp_path / "out", StoredFormat.BF16)
    assert np.isnan(load_model(tmp_path / "out")[1]["wpe"][3, 1])


def test_nothing_is_replaced_and_nothing_remains_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, got in (("file", "a file"), ("full", "a directory with files")):
        with pytest.raises(CheckpointError, match=f"expected a new path, or an empty directory, got {got}"):
            export_model(model(tmp_path / "in"), tmp_path / name, StoredFormat.FLOAT32)

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("threadloom.stages.checkpoint.exporting.write_configuration", fail)
        with pytest.raises(OSError, match="Input/output"):
            export_model(model(tmp_path / "in"), tmp_path / "empty", StoredFormat.FLOAT32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "in"]
    assert "model.safetensors" in export_model(model(tmp_path / "in"), tmp_path / "empty", StoredFormat.FLOAT32)
