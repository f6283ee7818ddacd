"""A grown checkpoint and a grown folder, opened by transformers: the logits of the small model."""

from pathlib import Path

import numpy as np
import pytest

from tests.stages.checkpoint.test_exporting_transformers import saved
from tests.stages.support import command, story
from threadloom.stages.run import train

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def logits(folder: Path, vocabulary: int) -> np.ndarray:
    from tests.stages.checkpoint import transformers_logits

    ids = np.random.default_rng(1).integers(0, vocabulary, (2, 8))
    found: np.ndarray = transformers_logits.opened(folder, ids)["logits"]
    return found


def require_equal(small: Path, grown: Path, vocabulary: int) -> None:
    expected = logits(small, vocabulary)
    assert np.abs(logits(grown, vocabulary) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-tied", "mistral", "qwen2", "qwen3", "smollm3"])
def test_a_grown_folder_has_the_logits_of_the_one_that_came_in(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "in")
    done = command("grow", tmp_path / "in", "--width=2", "--depth=2", "--where=even", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    require_equal(tmp_path / "in", tmp_path / "out", 37)


def test_a_grown_run_is_exported(tmp_path: Path) -> None:
    config = story(tmp_path, "steps=6", "checkpoint.interval=3", "model.layers=2")
    train(config, tmp_path / "run")
    small, grown = tmp_path / "run" / "checkpoints" / "step-000003", tmp_path / "grown"
    assert command("grow", small, "--width=3", "--depth=1", "--out", grown).status == 0
    assert command("export", grown, tmp_path / "out").status == 0
    vocabulary = 14  # characters of the text
    require_equal(small, grown / "checkpoints" / "step-000003", vocabulary)
    require_equal(small, tmp_path / "out", vocabulary)
