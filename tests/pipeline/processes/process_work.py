"""Functions that the tests run in worker processes, in a module that imports quickly."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import SKIP, Skip
from threadloom.pipeline.core.shared import SharedPool

Floats = NDArray[np.float32]
Job = tuple[str, Any]


def pid_of(item: object) -> int:
    return os.getpid()


def act(job: Job) -> Any:
    """Call the function `do_<verb>` of this module, for the job (verb, value)."""
    verb, value = job
    return globals()[f"do_{verb}"](value)


def do_return(value: object) -> object:
    return value


def do_raise(value: str) -> None:
    deeper(value)


def deeper(value: str) -> None:
    raise KeyError(value)


class TwoArguments(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")  # so that unpickling it with one argument fails


def do_raise_unpicklable(value: object) -> None:
    raise TwoArguments(1, 2)


def do_exit(code: int) -> None:
    sys.exit(code)


def do_leave(code: int) -> None:
    os._exit(code)


def do_kill(number: int) -> None:
    os.kill(os.getpid(), number)


def do_segfault(value: object) -> None:
    ctypes.string_at(0)


def do_hang(fifo: str) -> None:
    """Write the process id to a FIFO and never return."""
    Path(fifo).write_text(str(os.getpid()))
    threading.Event().wait()


def do_hold_gil(fifo: str) -> None:
    """Write the process id to a FIFO and never return, in C code that holds the GIL."""
    Path(fifo).write_text(str(os.getpid()))
    ctypes.PyDLL(None).pause()


def do_fork_and_die(value: object) -> None:
    """Die after forking a process that keeps this end of the connection open."""
    reader, _ = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # die with the parent, so that no process is left
        os.read(reader, 1)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def do_lambda(value: object) -> object:
    return (one for one in [lambda: value]) if value == "generator" else lambda: value


def do_lock(value: object) -> object:
    return threading.Lock()


def do_skip(value: object) -> Skip:
    return SKIP


def open_files() -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            yield str(link.readlink())


def do_facts(value: object) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "name": Path("/proc/self/comm").read_text().strip(),
        "sockets": sum(target.startswith("socket:") for target in open_files()),
        "cpu": sum(os.times()[:2]),
    }


def do_subprocess(value: str) -> str:
    command = [sys.executable, "-c", f"print({value!r})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def double(array: Floats) -> Floats:
    array *= 2
    return array


def double_exact(item: int) -> int:
    return 2 * item


def spell(item: int) -> Iterator[int]:
    for digit in str(item):
        yield int(digit)


class Pad:
    """A function that takes a slot of the pool for its result."""

    def __init__(self, pool: SharedPool) -> None:
        self.pool = pool

    def __call__(self, array: Floats) -> Floats:
        out = self.pool.empty((array.shape[0] + 2,), array.dtype)
        out[0] = out[-1] = 0
        out[1:-1] = array
        return out


class TakeThen:
    """A function that takes slots of the pool and then executes the job."""

    def __init__(self, pool: SharedPool, slots: int = 1) -> None:
        self.pool = pool
        self.slots = slots

    def __call__(self, job: Job) -> Any:
        taken = [self.pool.empty(4) for _ in range(self.slots)]
        for array in taken:
            array[:] = 7
        return act(job)


class Keeper:
    """A function that keeps its argument, or a copy of it if `copying`, which is allowed."""

    def __init__(self, copying: bool) -> None:
        self.copying = copying
        self.last: Floats | None = None

    def __call__(self, array: Floats) -> float:
        before = 0.0 if self.last is None else float(self.last[0])
        self.last = array.copy() if self.copying else array[:2]
        return before


class Logged:
    """A stage function whose set-up and tear-down are recorded in a file."""

    def __init__(self, path: str, fails: str = "") -> None:
        self.path = path
        self.fails = fails

    def log(self, word: str) -> None:
        with Path(self.path).open("a") as file:
            file.write(f"{word} {os.getpid()}\n")
        if self.fails == word:
            raise ValueError(f"no {word}")

    def __enter__(self) -> Self:
        self.log("enter")
        return self

    def __call__(self, job: Job) -> Any:
        return act(job)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.log("exit")


class Pairs:
    """Collects items into pairs, in a process; the last may be alone."""

    def __init__(self) -> None:
        self.items: list[int] = []

    def __call__(self, item: int) -> list[int] | Skip:
        self.items.append(item)
        if len(self.items) < 2:
            return SKIP
        pair, self.items = self.items, []
        return pair

    def flush(self) -> Iterator[list[int]]:
        """Yield the item that is left, and then raise if it is negative."""
        if self.items:
            yield self.items
        if self.items and self.items[0] < 0:
            raise ValueError("negative")


def do_append(job: tuple[str, object]) -> object:
    """Append a line to a file, and return the object on it."""
    path, value = job
    with Path(path).open("a") as file:
        file.write(f"{value}\n")
    return value
