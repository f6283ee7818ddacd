"""Interrupted commands: Ctrl-C, SIGTERM, a closed pipe, and the message on the remaining checkpoints."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from tests.stages.support import command, story
from threadloom.stages import inference
from threadloom.stages.console.json_worker import module_command
from threadloom.stages.resolve.loading import apply_overrides, to_json
from threadloom.stages.run import report, session

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    logger.remove()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(to_json(story(tmp_path, "steps=6", "checkpoint.interval=2", "evaluation.interval=2")))
    return path


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send a signal to this process when the checkpoint of a step is reported."""
    follow = report.Reporter.take

    def take(self: Any, event: Any, *rest: Any) -> None:
        follow(self, event, *rest)
        if type(event).__name__ == "Saved" and event.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(report.Reporter, "take", take)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_names_its_last_checkpoint(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    interrupt_at(monkeypatch, 4, number)
    before = signal.getsignal(signal.SIGTERM)
    ended = command("train", "--config", config, "--out", tmp_path / "run", "--no-tuned", "--sample=0")
    assert signal.getsignal(signal.SIGTERM) is before
    assert ended.status == status
    assert f"stopped by {'SIGTERM' if status == 143 else 'Ctrl-C'}; the last checkpoint is that of step" in ended.err
    monkeypatch.undo()
    resumed = command("train", "--resume", "--out", tmp_path / "run", "--no-tuned", "--sample=0")
    assert resumed.status == 0


def test_a_stopped_training_without_a_checkpoint_does_not_mention_resume(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "compile_kernels", interrupted)
    ended = command("train", "--config", config, "--out", tmp_path / "run", "--no-tuned")
    assert ended.status == 130
    assert "there is no checkpoint yet" in ended.err
    assert "--resume" not in ended.err


def test_a_stopped_evaluation_mentions_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "evaluate_text", interrupted)
    ended = command("eval", tmp_path)
    assert ended.status == 130
    assert ended.err.rstrip().endswith("stopped by Ctrl-C")


def test_an_estimate_of_a_run_is_of_that_run(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command("train", "--config", config, "--out", out, "--no-tuned", "--sample=0", "--steps=2").status == 0
    found = command("train", "--estimate", "--resume", "--out", out, "--steps=6")
    assert found.status == 0
    assert "story: " in found.out
    assert "6 updates of 4 x 8 tokens" in found.out
    assert command("train", "--estimate", "--resume").status == 2
    assert command("train", "--estimate", "--resume", "--overwrite", "--out", out).status == 2


def test_a_text_of_one_line_is_sampled(tmp_path: Path) -> None:
    """Its tokenizer has no newline token, with which a sample begins by default."""
    (tmp_path / "one.txt").write_text("acgt" * 200)
    (tmp_path / "config.json").write_text(to_json(apply_overrides(story(tmp_path), ["steps=2"])))
    start = ("train", "--config", tmp_path / "config.json", "--text", tmp_path / "one.txt", "--no-tuned")
    trained = command(*start, "--out", tmp_path / "run", "--sample=5")
    assert trained.status == 0, trained.err
    assert "run directory: " in trained.out
    assert len(command("sample", tmp_path / "run", "--tokens=5").out.strip()) == 6
    command("sample", tmp_path / "run", "--prompt=x").refuses("'x'")


def test_a_closed_pipe_is_not_an_error(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command("train", "--config", config, "--out", out, "--no-tuned", "--sample=0").status == 0
    sampling = [*module_command("tests.stages.threadloom"), "sample", str(out), "--tokens=200"]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(sampling, stdout=write, stderr=subprocess.PIPE, text=True, timeout=50, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
