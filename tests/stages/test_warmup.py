"""Compiling before a run: who compiles what, and that a second process never outlives the first."""

import subprocess
from typing import Any

import pytest

from stages import warmup
from stages.settings import Precision
from stages.warmup import compile_kernels

pytestmark = pytest.mark.timeout(240)  # in a fresh clone kernels are compiled here


class FakeProcess:
    """Stands for the second process."""

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self.arguments = arguments
        self.said: list[str] = []
        self.options = options
        started.append(self)

    def wait(self) -> int:
        self.said.append("wait")
        return 0

    def kill(self) -> None:
        self.said.append("kill")


started: list[FakeProcess] = []


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    started.clear()
    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    return started


def test_nothing_to_compile_needs_no_second_process(processes: list[FakeProcess]) -> None:
    with warmup._helper(Precision.FLOAT32, wanted=False) as wait:
        wait()
    assert not processes


def test_the_second_process_is_waited_for_and_ended(processes: list[FakeProcess]) -> None:
    with warmup._helper(Precision.BF16, wanted=True) as wait:
        wait()
    (process,) = processes
    assert process.arguments[-3:] == ["-m", "stages.warmup", "bf16"]
    assert process.said == ["wait", "kill", "wait"]


def test_an_error_ends_the_second_process(processes: list[FakeProcess]) -> None:
    with pytest.raises(KeyboardInterrupt), warmup._helper(Precision.BF16, wanted=True):
        raise KeyboardInterrupt
    assert processes[0].said == ["kill", "wait"]


def test_kernels_that_are_there_are_loaded_without_a_word_and_without_a_second_process(
    processes: list[FakeProcess],
) -> None:
    compile_kernels(lambda _: None)
    processes.clear()
    said: list[str] = []
    assert compile_kernels(said.append) < warmup.SLOW
    assert not said
    assert not processes


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.BF16])
def test_backward_can_be_compiled_before_forward(precision: Precision) -> None:
    warmup._help(precision)
