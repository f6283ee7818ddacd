"""Compiling before a run: which process compiles what, and that the second process never outlives the first."""

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from loguru import logger
from numba.core import event

from threadloom.kernels import bits16, float32
from threadloom.kernels.compiling.dispatcher import KernelDispatcher
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config import DelayCorrection, EmbeddingConfig, ModelArchitecture
from threadloom.stages.config.settings import Precision
from threadloom.stages.console.json_worker import module_command
from threadloom.stages.step.optimizers import AdamW, ForecastAdamW, LeadAdamW
from threadloom.stages.training import warmup
from threadloom.stages.training.warmup import compile_kernels

pytestmark = pytest.mark.timeout(240)  # in a fresh clone kernels are compiled here


@pytest.mark.parametrize(
    ("remedy", "kind"),
    [
        (DelayCorrection.NONE, AdamW),
        (DelayCorrection.WARMUP, AdamW),
        (DelayCorrection.LEAD, LeadAdamW),
        (DelayCorrection.FORECAST, ForecastAdamW),
        (DelayCorrection.FORECAST_LEAD, ForecastAdamW),
    ],
)
def test_the_update_that_is_compiled_is_that_of_the_remedy(
    remedy: DelayCorrection, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[type] = []
    step = warmup._TinyStep.optimizer

    def recorded(tiny: warmup._TinyStep) -> None:
        used.append(type(tiny._training.optimizer))
        step(tiny)

    monkeypatch.setattr(warmup._TinyStep, "optimizer", recorded)
    compile_kernels(lambda _: None, delayed=remedy)
    assert used == [kind]


def test_the_update_in_rotated_bases_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    rotated: list[bool] = []
    step = warmup._TinyStep.optimizer

    def recorded(tiny: warmup._TinyStep) -> None:
        rotated.append(tiny._training.rotated is not None)
        step(tiny)

    monkeypatch.setattr(warmup._TinyStep, "optimizer", recorded)
    compile_kernels(lambda _: None, delayed=DelayCorrection.FORECAST_LEAD)
    compile_kernels(lambda _: None, delayed=DelayCorrection.FORECAST_LEAD, rotated=True)
    assert rotated == [False, True]


def test_the_output_projection_that_is_compiled_is_that_of_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    bands: list[object] = []
    step = warmup._TinyStep.optimizer

    def recorded(tiny: warmup._TinyStep) -> None:
        bands.append(tiny._training.config.geometry().bands)
        step(tiny)

    monkeypatch.setattr(warmup._TinyStep, "optimizer", recorded)
    compile_kernels(lambda _: None)
    compile_kernels(lambda _: None, embedding=EmbeddingConfig(rank=2))
    assert bands == [(), ((3, 3),)]


@pytest.mark.skipif(not JIT_ENABLED, reason="there is nothing to compile")
@pytest.mark.parametrize(
    ("team", "in_the_second"),
    [(1, [("backward", {"head_backward"}), ("evaluation", {"blocks_forward"})]), (2, [("backward", set())])],
)
def test_each_process_leaves_out_the_kernels_of_the_other(
    team: int, in_the_second: list[tuple[str, set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, set[str]]] = []
    for name in ("backward", "evaluation"):
        record = lambda _, name=name: seen.append((name, set(KernelDispatcher._left_out)))  # noqa: E731
        monkeypatch.setattr(warmup._TinyStep, name, record)
    warmup.compile_backward(Precision.FLOAT32, ModelArchitecture.GPT2, team)
    warmup._TinyStep(Precision.FLOAT32, ModelArchitecture.GPT2).head()
    assert seen == [*in_the_second, ("backward", {"blocks_backward"})]


def test_the_names_of_the_kernels_that_are_left_out() -> None:
    for name in (warmup._FORWARD, warmup._HEAD, warmup._BLOCKS):
        for kernels in (float32.GPT2, float32.LLAMA, bits16.GPT2, bits16.LLAMA):
            assert getattr(kernels, name).__name__ == name


@pytest.mark.parametrize(
    ("team", "steps"),
    [
        (1, ["embedding", "forward", "head", "optimizer", "embedding", "wait", "backward", "evaluation"]),
        (2, ["embedding", "forward", "evaluation", "wait", "backward", "optimizer"]),
    ],
)
def test_all_that_needs_no_kernel_of_the_second_process_comes_before_the_wait_for_it(
    team: int, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in set(steps) - {"wait"}:
        monkeypatch.setattr(warmup._TinyStep, name, lambda _, name=name: done.append(name))

    @contextmanager
    def process(*_: object, **__: object) -> Iterator[Any]:
        yield lambda: done.append("wait")

    monkeypatch.setattr(warmup, "_second_process", process)
    compile_kernels(lambda _: None, team=team)
    assert done == steps


BACKWARD = (Precision.BF16, ModelArchitecture.GPT2, 1)


class FakeProcess:
    """A stub of the second process."""

    status = 0

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self.arguments = arguments
        self.calls: list[str] = []
        self.options = options
        started.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("leave")

    def wait(self) -> int:
        self.calls.append("wait")
        return self.status

    def kill(self) -> None:
        self.calls.append("kill")


started: list[FakeProcess] = []


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    started.clear()
    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    return started


def test_without_compiling_no_second_process_is_started(processes: list[FakeProcess]) -> None:
    with warmup._second_process((Precision.FLOAT32, ModelArchitecture.GPT2, 1), wanted=False) as wait:
        wait()
    assert not processes


def test_the_second_process_is_waited_for_and_ended(processes: list[FakeProcess]) -> None:
    with warmup._second_process(BACKWARD, wanted=True) as wait:
        wait()
    (process,) = processes
    assert process.arguments[-4:] == ["threadloom.stages.child_processes.compile_backward", "bf16", "gpt2", "1"]
    assert process.calls == ["wait", "kill", "leave"]


def test_an_error_ends_the_second_process(processes: list[FakeProcess]) -> None:
    with pytest.raises(KeyboardInterrupt), warmup._second_process(BACKWARD, wanted=True):
        raise KeyboardInterrupt
    assert processes[0].calls == ["kill", "leave"]


@pytest.mark.usefixtures("processes")
def test_a_second_process_that_fails_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProcess, "status", 3)
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), level="INFO", format="{message}")
    try:
        with warmup._second_process(BACKWARD, wanted=True) as wait:
            wait()
    finally:
        logger.remove(sink)
    assert "status 3" in "".join(said)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES, errno.ENOMEM])
def test_a_second_process_that_cannot_be_started_costs_only_time(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    said: list[str] = []
    with warmup._second_process(BACKWARD, wanted=True, on_progress=said.append) as wait:
        wait()
    assert said == [f"the second compiling process cannot be started ({os.strerror(code)}): compiling will take longer"]


def test_cached_kernels_are_loaded_without_messages_and_without_a_second_process(
    processes: list[FakeProcess],
) -> None:
    compile_kernels(lambda _: None)
    processes.clear()
    said: list[str] = []
    assert compile_kernels(said.append) < warmup.SLOW
    assert not said
    assert not processes


def test_compiling_is_reported_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "SLOW", 0.0)
    monkeypatch.setattr(warmup, "INTERVAL", 0.001)
    said: list[str] = []
    enough = threading.Event()

    def say(words: str) -> None:
        said.append(words)
        if words.endswith("2 kernels so far"):
            enough.set()

    with warmup._CompileProgress(say):
        for _ in range(2):
            with event.trigger_event("numba:compile"):
                pass
        assert enough.wait(30)
    assert "compiling the kernels" in said[0]
    count = len(said)
    with event.trigger_event("numba:compile"):
        pass
    assert len(said) == count


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BF16])
def test_backward_can_be_compiled_before_forward(precision: Precision) -> None:
    warmup.compile_backward(precision, ModelArchitecture.GPT2)


@pytest.mark.skipif(not JIT_ENABLED, reason="there is nothing to compile")
class TestTheProcess:
    def test_it_ignores_the_users_packages_of_the_same_names(self, tmp_path: Path) -> None:
        compile_kernels()
        for name in ("pipeline", "kernels", "stages", "json"):  # this project's names, and one that is imported first
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise ImportError('wrong module')")
        command = module_command("threadloom.stages.child_processes.compile_backward", "float32", "gpt2", "1")
        with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE) as process:
            assert process.wait() == 0

    def test_it_exits_with_its_parent(self, tmp_path: Path) -> None:
        """Its standard input is closed while it compiles, as when the parent is killed."""
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = module_command("threadloom.stages.child_processes.compile_backward", "bf16", "gpt2")
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
        process.communicate()
        assert process.returncode == 1
