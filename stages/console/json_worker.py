"""Worker processes that exchange lines of JSON with their parent: one request per line, one reply per line.

A measurement runs in a separate process, so that its peak memory includes nothing else and several measurements can
alternate. A worker is idle between requests. This module imports the standard library only, because its imports count
towards the memory of the measured process.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from threadloom.stages.console.signal_numbers import CHECKPOINT_SIGNALS, STOP_SIGNALS

_IGNORED = (*STOP_SIGNALS, *CHECKPOINT_SIGNALS)
"""Signals that a command reacts to; its child processes ignore them."""


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block stop signals while a process of `module_command` is started: it inherits that until it ignores them.

    Without it, Ctrl-C in a terminal would print the traceback of a child process that is about to ignore it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerError(RuntimeError):
    """A worker process exited before it replied. Its own messages are on standard error."""


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as `python -m` does, with the import path of this process.

    `python -m` itself would put the current directory first on the import path, where a user may have files with the
    names of this project's modules. The process ignores stop signals: those of a terminal, of SLURM or of systemd are
    sent to children too, but the parent ends them, by closing their standard input or by `kill`.
    """
    boot = (
        "import json, runpy, signal, sys; "
        f"[signal.signal(number, signal.SIG_IGN) for number in {_IGNORED}]; "
        "hasattr(signal, 'pthread_sigmask') and signal.pthread_sigmask(signal.SIG_SETMASK, ()); "
        "sys.path[:] = json.loads(sys.argv.pop(1)); "
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-P", "-c", boot, json.dumps([str(path) for path in sys.path]), module, *arguments]


def module_output(
    module: str,
    *arguments: str,
    request: bytes = b"",
    environment: Mapping[str, str] | None = None,
    quiet: bool = False,
) -> bytes:
    """Run a module in a child process with `request` as its input, and return its output.

    `environment` is added to that of this process. Raises WorkerError if the process fails; its messages are on
    standard error, unless it is `quiet`.
    """
    with signals_blocked():
        process = subprocess.Popen(
            module_command(module, *arguments), env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if quiet else None,
        )  # fmt: skip
    with process:
        try:
            output, _ = process.communicate(request)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise WorkerError(f"the process {module} exited with status {process.returncode}")
    return output


class JsonWorkerProcess:
    """A worker process, seen from its parent. A context manager: leaving the block ends the process."""

    def __init__(self, command: Sequence[str], task: Any) -> None:
        """Start `command` and send `task` as its first line, to which there is no reply."""
        with signals_blocked():
            self._process = subprocess.Popen(command, encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.send(task)

    @property
    def name(self) -> str:
        """The name of the worker in messages."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # a worker exits at the end of its input
        self._process.wait()
        self._process.stdout.close()

    def memory(self) -> dict[str, int]:
        """Return sizes in bytes: `peak`, the most memory the process has held, and those its server adds."""
        return dict(self.request({"memory": True}))

    def request(self, message: dict[str, Any]) -> Any:
        """Send a request and return the reply. Raises WorkerError if the process exits instead."""
        self.send(message)
        return self.receive()

    def has_replied(self, seconds: float) -> bool:
        """Wait up to `seconds` for a reply, or for the end of the process; return True if there is one."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def receive(self) -> Any:
        """Return the next reply, waiting for it. Raises WorkerError if the process exits instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} exited with status {self._process.wait()}; its own messages are above")
        return json.loads(line)

    def send(self, message: Any) -> None:
        """Send a line without waiting for a reply. Raises WorkerError if the process has exited."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name} exited with status {self._process.wait()}") from error


class UpdateServer(Protocol):
    """A training in a worker process, which makes optimizer updates on request."""

    def run(self, updates: int) -> Any:
        """Make `updates` updates and return their figures, a dataclass."""

    def memory(self) -> dict[str, int]:
        """Return sizes in bytes, by name."""

    def close(self) -> None:
        """End the threads of the training."""


def redirect_stdout_to_stderr() -> TextIO:
    """Return the standard output for replies, and send everything else that is printed to standard error."""
    replies, sys.stdout = sys.stdout, sys.stderr
    return replies


def serve(build: Callable[[Any], UpdateServer]) -> None:
    """Build a server from the task, the first line of the input, and reply to requests until the input ends.

    ``{"run": n}`` is answered by the server's `run`, any other request by its `memory` and the peak of the process.
    """
    replies = redirect_stdout_to_stderr()
    server = build(json.loads(sys.stdin.readline()))
    try:
        for line in sys.stdin:
            message = json.loads(line)
            if "run" in message:
                reply = asdict(server.run(message["run"]))
            else:
                reply = {"peak": peak_resident_bytes(), **server.memory()}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
    finally:
        server.close()


def resident_bytes() -> int:
    """Return the memory that this process holds now, in bytes; on systems other than Linux, its peak."""
    return _resident("VmRSS")


def peak_resident_bytes() -> int:
    """Return the most memory that this process has held, in bytes.

    On Linux this is VmHWM, because ru_maxrss starts at the size of the parent process.
    """
    return _resident("VmHWM")


def _resident(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("utf-8", "replace").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
