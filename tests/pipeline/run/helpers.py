"""An exception, a resource and a consumer for tests of failing and stopped runs."""

import threading

from threadloom.pipeline import Cancelled, Run


class Boom(Exception):
    """The error of a failing stage function."""


class WaitingResource:
    """A resource whose takers wait until it is aborted."""

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.entered = threading.Event()

    def take(self, item: object) -> None:
        """Wait until the resource is aborted, then raise Cancelled."""
        self.entered.set()
        assert self.aborted.wait(30)
        raise Cancelled

    def abort(self) -> None:
        """Let all takers continue."""
        self.aborted.set()


def consume(run: Run) -> None:
    """Iterate the sink "out" of a run; without one, wait for the end of the run."""
    if "out" in run.statistics():
        for _ in run:
            pass
    else:
        run.wait()
