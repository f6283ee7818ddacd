"""Processes that answer questions: one line of JSON to them, one back, and so on. They are idle between.

What is measured gets a process of its own, so that its peak memory is its own, and several can take turns. Only the
standard library is imported here: it would count as memory of whatever is measured.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO


class WorkerError(RuntimeError):
    """A process ended before it had answered; its own words are above."""


def command_of(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours as `python -m` does, with the import path of this process.

    Not `-m` itself: that looks into the current folder first, where a user may have files named like modules of ours.
    """
    boot = (
        "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-P", "-c", boot, json.dumps([str(path) for path in sys.path]), module, *arguments]


class Asked:
    """Another process that serves (`serve`). Used as a context manager; leaving ends the process."""

    def __init__(self, command: Sequence[str], task: Any) -> None:
        """`task`: its first line, which it does not answer."""
        self._process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(task)

    @property
    def name(self) -> str:
        """How messages call it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # the end of its input ends it
        self._process.wait()
        self._process.stdout.close()

    def memory(self) -> dict[str, int]:
        """Return its bytes: `peak` since it began, and what else its server says."""
        return dict(self.ask({"memory": True}))

    def ask(self, question: dict[str, Any]) -> Any:
        """Return its answer (WorkerError)."""
        self._send(question)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended with status {self._process.wait()}; its own words are above")
        return json.loads(line)

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name} ended with status {self._process.wait()}") from error


def answers_only() -> TextIO:
    """Return where this process writes its answers; whatever else it prints goes to standard error from now on."""
    answers, sys.stdout = sys.stdout, sys.stderr
    return answers


def serve(answers: TextIO, run: Callable[[int], dict[str, Any]], memory: Callable[[], dict[str, int]]) -> None:
    """Answer until the input ends: ``{"run": n}`` by `run`, everything else by `memory` and the peak."""
    for line in sys.stdin:
        question = json.loads(line)
        answer = run(question["run"]) if "run" in question else {"peak": resident("VmHWM")} | memory()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def resident(field: str) -> int:
    """Return a size of this process in bytes: VmRSS now, VmHWM at most so far. Elsewhere than on Linux, the peak.

    Not ru_maxrss on Linux: that begins with what the parent held when it started this process.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
