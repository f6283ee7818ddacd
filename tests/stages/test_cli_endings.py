"""Interrupted commands: Ctrl-C, SIGTERM, a closed pipe, and the message on the remaining checkpoints."""

import dataclasses
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger

from tests.stages.support import command, story
from threadloom.stages import inference
from threadloom.stages.console.json_worker import module_command
from threadloom.stages.machine import detect
from threadloom.stages.memory import Update
from threadloom.stages.resolve.loading import apply_overrides, to_json
from threadloom.stages.run import checkpoint_requests, report, session
from threadloom.stages.step import EvaluateStage
from threadloom.stages.storage import RunDirectory

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
    """Send a signal to this process when the update of a step is reported."""
    follow = report.Reporter.take

    def take(self: Any, event: Any, *rest: Any) -> None:
        follow(self, event, *rest)
        if isinstance(event, Update) and event.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(report.Reporter, "take", take)


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_a_stopped_training_writes_a_checkpoint_and_names_the_command_that_continues_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int, name: str
) -> None:
    interrupt_at(monkeypatch, 3, number)
    before = signal.getsignal(number)
    start = ("train", "--config", config, "--no-tuned", "--sample=0", *MANY_UPDATES, f"--set=delay={status % 3}")
    ended = command(*start, "--out", tmp_path / "run")
    assert signal.getsignal(number) is before
    assert ended.status == status
    stop = next(line for line in ended.err.splitlines() if "stopped by" in line)
    resume = f"threadloom train --resume --out {tmp_path / 'run'}"
    assert f"stopped by {name}; the last checkpoint is that of step" in stop
    assert stop.endswith(f"to continue: {resume}")
    (step,) = RunDirectory(tmp_path / "run").checkpoint_steps()
    assert 3 <= step < UPDATES
    monkeypatch.undo()
    assert command(*resume.split()[1:], "--no-tuned", "--sample=0").status == 0
    assert command(*start, "--out", tmp_path / "whole").status == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


UPDATES = 400
MANY_UPDATES = (f"--steps={UPDATES}", "--set=checkpoint.interval=0", "--set=evaluation.interval=0")
"""Enough updates for a signal to arrive before the last one."""


def weights(run: Path) -> dict[str, bytes]:
    """Return the tensors of the last checkpoint, by file name."""
    folder = run / "checkpoints" / f"step-{UPDATES:06d}"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "training.json"}


def test_sigusr1_writes_a_checkpoint_and_the_training_continues(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, 3, signal.SIGUSR1)
    options = ("--config", config, "--out", tmp_path / "run", "--no-tuned", "--sample=0", *MANY_UPDATES)
    ended = command("train", *options)
    assert ended.status == 0, ended.err
    first, last = RunDirectory(tmp_path / "run").checkpoint_steps()
    assert 3 <= first < last == UPDATES


def test_the_time_limit_stops_a_training_as_sigterm_does(config: Path, tmp_path: Path) -> None:
    options = ("--config", config, "--out", tmp_path / "run", "--no-tuned", "--sample=0", "--steps=10000000")
    ended = command("train", *options, "--time-limit=1")
    assert ended.status == 143
    assert "stopped by the time limit" in ended.err


def test_a_stop_during_the_last_evaluation_loses_neither_the_weights_nor_the_loss(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_requests, "EVALUATION_SECONDS", 0.01)
    evaluate = EvaluateStage.evaluate

    def endless(self: Any, lease: Any, *others: Any) -> Any:
        final = self._validation.final
        self._validation = SimpleNamespace(
            final=SimpleNamespace(micro_batches=10**9, tokens=1, fill=lambda _, __, *rows: final.fill(0, 0, *rows)),
            sets={},
        )
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        return evaluate(self, lease, *others)

    monkeypatch.setattr(EvaluateStage, "evaluate", endless)
    options = ("--config", config, "--no-tuned", "--sample=0", *MANY_UPDATES)
    stopped = command("train", *options, "--out", tmp_path / "run")
    assert stopped.status == 143, stopped.err
    monkeypatch.undo()
    resumed = command("train", "--resume", "--out", tmp_path / "run", "--sample=0")
    whole = command("train", *options, "--out", tmp_path / "whole")
    assert resumed.out.split(" updates")[0] == whole.out.split(" updates")[0]
    assert "validation loss" in resumed.out
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_a_stopped_training_without_a_checkpoint_does_not_mention_resume(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "compile_kernels_of", interrupted)
    ended = command("train", "--config", config, "--out", tmp_path / "run", "--no-tuned")
    assert ended.status == 130
    assert "there is no checkpoint yet" in ended.err
    assert "--resume" not in ended.err


def test_a_stopped_evaluation_mentions_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "evaluate_text", interrupted)
    ended = command("eval", tmp_path)
    assert ended.status == 130
    assert ended.err.rstrip().endswith("stopped by Ctrl-C")


def test_a_resumed_training_takes_the_threads_that_the_process_may_use(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward_threads() -> int:
        return int(json.loads((tmp_path / "run" / "config.json").read_text())["threads"]["forward"])

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start = ("train", "--config", config, "--no-tuned", "--sample=0", "--set=pictures=false", "--out", tmp_path / "run")
    assert command(*start, "--set=threads.forward=3", "--steps=2").status == 0
    assert forward_threads() == 3, "it was set"
    resumed = command("train", "--resume", "--out", tmp_path / "run", "--sample=0", "--steps=3")
    assert resumed.status == 0, resumed.err
    assert "the run had up to 3 per stage and continues with 1, by OMP_NUM_THREADS" in resumed.err
    assert forward_threads() == 1


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


def not_mapped() -> OSError:
    """Return the error of llvmlite for a library that the loader cannot map."""
    error = OSError("Could not find/load shared object file 'libx.so'")
    error.__context__ = OSError("libx.so: failed to map segment from shared object")
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 3.00 GiB"), "the system grants no more memory (Unable to allocate 3.00 GiB)"),
        (RuntimeError("can't start new thread"), "the system grants no more threads"),
        (ImportError("libx.so: failed to map segment from shared object"), "a library cannot be loaded"),
        (not_mapped(), "a library cannot be loaded for lack of memory (libx.so: failed to map"),
    ],
)
def test_a_limit_of_the_system_is_one_sentence(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(session, "compile_kernels_of", refuse)
    ended = command("train", "--config", config, "--no-tuned", "--out", tmp_path / "run")
    assert ended.status == 1
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_run_that_does_not_fit_is_refused_before_the_old_run_is_removed(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    machine = dataclasses.replace(detect(), memory_available=1000)
    monkeypatch.setattr("threadloom.stages.run.session.detect", lambda: machine)
    start = ("train", "--config", config, "--no-tuned", "--sample=0", "--steps=1", "--out", tmp_path / "run")
    ended = command(*start, "--overwrite")
    assert ended.status == 1
    assert "--force" in ended.err
    assert (tmp_path / "run/config.json").read_text() == "{}"

    def started(*_: object, **__: object) -> None:
        raise MemoryError("it was started")

    monkeypatch.setattr(session, "compile_kernels_of", started)
    assert "it was started" in command(*start, "--overwrite", "--force").err
