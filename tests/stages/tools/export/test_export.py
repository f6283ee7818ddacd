"""The command `export`: folders of a run and of a model, number formats, sizes, and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.test_huggingface import random_weights
from tests.stages.data.made_tokenizers import MADE
from tests.stages.models.test_huggingface import GEOMETRY
from tests.stages.support import command
from threadloom.stages.checkpoint import load_model
from threadloom.stages.checkpoint.huggingface import write_model
from threadloom.stages.storage import integers_times, read_integers

FIXTURE = Path(__file__).parents[2] / "resolve" / "fixtures" / "run"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a model and a tokenizer."""
    (tmp_path / "in").mkdir()
    write_model(tmp_path / "in", random_weights(), GEOMETRY)
    (tmp_path / "in" / "tokenizer.json").write_text(MADE["qwen"]())
    return tmp_path / "in"


def test_a_folder_is_exported_in_shards(folder: Path, tmp_path: Path) -> None:
    found = command("export", folder, tmp_path / "out", "--dtype", "bf16", "--shard-size", "0.004 MB")
    assert found.status == 0
    assert "model.safetensors.index.json" in found.out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    geometry, weights = load_model(tmp_path / "out")
    assert geometry == GEOMETRY
    np.testing.assert_allclose(weights.flat, random_weights().flat, rtol=2.0**-8)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == MADE["qwen"]()


def test_the_newest_checkpoint_of_a_run_is_exported(tmp_path: Path) -> None:
    assert command("export", FIXTURE, tmp_path / "out").status == 0
    _, weights = load_model(tmp_path / "out")
    _, expected = load_model(FIXTURE / "checkpoints" / "step-000002")
    np.testing.assert_array_equal(weights.flat, expected.flat)
    assert not (tmp_path / "out" / "training.json").exists()


def test_an_embedding_on_a_grid_is_exported_as_integers_too(folder: Path, tmp_path: Path) -> None:
    weights = random_weights()
    weights["wte"][...] = np.rint(weights["wte"] * 4096) / 4096
    (tmp_path / "grid").mkdir()
    write_model(tmp_path / "grid", weights, GEOMETRY)
    (tmp_path / "grid" / "tokenizer.json").write_text(MADE["qwen"]())
    assert command("export", tmp_path / "grid", tmp_path / "out").status == 0
    found = integers_times(*read_integers(tmp_path / "out" / "wte.integers"))
    np.testing.assert_array_equal(found, weights["wte"])
    assert command("export", folder, tmp_path / "plain").status == 0
    assert not (tmp_path / "plain" / "wte.integers").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard-size", "0"], "expected a size of at least one byte"),
        (["--shard-size", "5 apples"], "expected a size of at least one byte"),
        (["--dtype", "int3"], "is not one of"),
    ],
)
def test_options_without_meaning_are_refused(folder: Path, tmp_path: Path, options: list[str], words: str) -> None:
    found = command("export", folder, tmp_path / "out", *options)
    assert found.status != 0
    assert words in found.out + found.err
    assert not (tmp_path / "out").exists()


def test_a_path_without_a_model_and_one_with_files_are_refused(folder: Path, tmp_path: Path) -> None:
    assert command("export", tmp_path / "none", tmp_path / "out").status == 1
    found = command("export", folder, folder)
    assert found.status == 1
    assert "a directory with files" in found.out + found.err
