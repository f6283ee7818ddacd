"""Actions of faults on a run, other than exceptions and delays."""

import gc
import itertools
import os
import signal
import threading
import warnings
from contextlib import suppress

from threadloom.pipeline.core import PipelineError
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.run import Run

CHILD_SECONDS = 5
"""Seconds after which a forked child that hangs is killed."""


def pause(run: Run, seconds: float) -> None:
    """Pause a run, and resume it after `seconds`."""
    run.pause()
    threading.Timer(seconds, run.resume).start()


class _Garbage:
    """An object in a reference cycle whose finaliser calls a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.cycle = self

    def __del__(self) -> None:
        self.run.statistics()
        self.run.pause()
        self.run.resume()


def leave_garbage(run: Run, count: int) -> None:
    """Leave `count` objects for the garbage collector whose finalisers call `run`."""
    for _ in range(count):
        _Garbage(run)


def drop_iterator() -> None:
    """Iterate a small graph, and leave its iterator and its running threads in a reference cycle."""
    graph = Graph("dropped")
    node = graph.stage("one", int, after=graph.source("draw", itertools.count))
    iterator = iter(graph.sink("out", after=node))
    next(iterator)
    cycle: list[object] = [iterator]
    cycle.append(cycle)


def fork(run: Run) -> None:
    """Fork; raise AssertionError if the child can use the run, or does not end at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(_examine(run))
        finally:
            os._exit(4)  # an error must not let the child continue as its parent
    status = os.waitpid(pid, 0)[1]
    if status:
        raise AssertionError(f"a forked child could use the run of its parent, or hung: wait status {status}")


def _examine(run: Run) -> int:
    """Return 0 if every command to a run of the parent is refused and its block is left. For a child."""
    gc.disable()  # nothing else may run in this child
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(CHILD_SECONDS)
    try:
        run.cancel()
    except PipelineError:
        run.statistics()
        with suppress(PipelineError):  # the failure of the run, if it has ended with one
            run.__exit__(None, None, None)
        return 0
    except BaseException:
        return 2
    return 3
