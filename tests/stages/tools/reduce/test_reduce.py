"""The command `reduce`: the reduced model, its files and figures, and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from tests.stages.checkpoint.llama_folder import CONFIG, tensors_of, write_folder
from tests.stages.data.made_tokenizers import MADE
from tests.stages.support import command
from threadloom.kernels import Weights
from threadloom.stages.inference import Model
from threadloom.stages.storage import integers_times, read_integers

RUN = Path(__file__).parents[2] / "resolve" / "fixtures" / "run"
TEXT = Path(__file__).parents[2] / "resolve" / "fixtures" / "text.txt"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


def embedding(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    weights = Model.open(folder).weights
    assert isinstance(weights, Weights)
    return weights.wte


def report(folder: Path) -> dict[str, dict[str, float]]:
    """Return the figures of each way."""
    content = json.loads((folder / "reduction.json").read_text())
    return {figures["name"]: figures for figures in content["figures"]}


def test_a_rounded_model(tmp_path: Path) -> None:
    """The folder is a plain model whose embedding is that of the compressed integers, bit for bit."""
    out = tmp_path / "out"
    found = command("reduce", RUN, "--out", out, "--bits", "3", "--text", TEXT)
    assert found.status == 0, found.err
    assert "error of a logit" in found.out
    integers, step = read_integers(out / "wte.integers")
    np.testing.assert_array_equal(embedding(out), integers_times(integers, step))
    before, after = Model.open(RUN), Model.open(out)
    assert after.geometry == before.geometry
    np.testing.assert_array_equal(after.weights.qkv_weight, before.weights.qkv_weight)
    figures = report(out)
    assert list(figures) == ["rtn", "gptq", "gptq-sorted", "lll", "cvp", "cvp scaled"]
    assert figures["cvp"]["error"] <= figures["lll"]["error"] <= figures["rtn"]["error"]
    assert figures["cvp scaled"]["bits"] <= 3
    assert figures["cvp scaled"]["size"] == (out / "wte.integers").stat().st_size
    assert "of the step" in found.out
    assert figures["rtn"]["bits"] == pytest.approx(3, abs=0.1)  # few weights: the entropy jumps
    assert figures["rtn"]["loss"] == pytest.approx(
        json.loads((out / "reduction.json").read_text())["loss_before"], rel=0.1
    )


@pytest.mark.parametrize("basis", ["pca", "rows"])
def test_a_model_of_lower_rank(basis: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("reduce", RUN, "--out", out, "--rank", "2", "--basis", basis).status == 0
    assert np.linalg.matrix_rank(embedding(out).astype(np.float64), tol=1e-4) == 2
    figures = report(out)
    assert list(figures) == ["pca", "lll", "rows"]
    assert not (out / "wte.integers").exists()
    full = tmp_path / "full"
    channels = Model.open(RUN).geometry.channels
    assert command("reduce", RUN, "--out", full, "--rank", channels, "--basis", basis).status == 0
    np.testing.assert_allclose(embedding(full), embedding(RUN), atol=1e-5)


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("reduce", RUN, "--out", out).refuses("one of --bits and --rank", "neither")
    command("reduce", RUN, "--out", out, "--bits", 4, "--rank", 2).refuses("both")
    command("reduce", RUN, "--out", out, "--rank", 1000).refuses("--rank", "the channels of the model")
    checkpoint = RUN / "checkpoints" / "step-000002"
    command("reduce", checkpoint, "--out", out, "--bits", 4).refuses("train.npy", "--text FILE_OR_DIR")
    command("reduce", RUN, "--out", RUN, "--bits", 4).refuses("a directory with files")
    (tmp_path / "llama").mkdir()
    folder = write_folder(tmp_path / "llama", CONFIG, tensors_of(CONFIG))
    (folder / "tokenizer.json").write_text(MADE["qwen"]())
    command("reduce", folder, "--out", out, "--bits", 4, "--text", TEXT).refuses(
        "a GPT-2", "llama", "threadloom export"
    )
    assert not out.exists()
