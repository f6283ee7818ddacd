"""The errors for a process that ended during its work: it died, or was killed because it exceeded its time limit."""

import reprlib
import signal
from contextlib import suppress
from enum import Enum
from typing import Any

from threadloom.pipeline.processes.child_process import GUARD_REMEDY
from threadloom.pipeline.processes.errors import WorkerDied, WorkerTimeout


class ChildPhase(Enum):
    """The phases of a process in which it has no item, as error messages call them."""

    START = "during its start and set-up"
    FLUSH = "during its flush"
    TEAR_DOWN = "during its tear-down"


def death_of(process: str, pid: int, exitcode: int | None, crash: str, doing: Any) -> WorkerDied:
    """Return the error for a process that has ended although its worker waits for it.

    `process` is the title of its worker, `crash` its crash report, and `doing` its item or `ChildPhase`.
    """
    when = doing.value if isinstance(doing, ChildPhase) else f"while processing item {reprlib.repr(doing)}"
    how = "ended" if exitcode is None else f"exited with code {exitcode}"
    hint = "Its code called os._exit, or closed its connection"
    if exitcode is not None and exitcode < 0:
        with suppress(ValueError):
            how = f"was killed by signal {-exitcode} ({signal.Signals(-exitcode).name})"
        hint = "Its own code crashed" if crash else "It was killed from outside, possibly out of memory (see dmesg)"
    if doing is ChildPhase.START:
        hint = f"Its output is on stderr. {GUARD_REMEDY}"
    stack = f"\n{crash}" if crash else ""
    return WorkerDied(f"process {pid} of {process!r} {how} {when}. {hint}{stack}", pid, exitcode)


def timeout_of(process: str, pid: int, seconds: float | None, doing: Any) -> WorkerTimeout:
    """Return the error for a process that was killed because its item or its tear-down exceeded `seconds`."""
    late = "its tear-down exceeded"
    if not isinstance(doing, ChildPhase):
        late = f"item {reprlib.repr(doing)} exceeded the time limit of"
    return WorkerTimeout(f"process {pid} of {process!r} was killed: {late} {seconds:g} s")
