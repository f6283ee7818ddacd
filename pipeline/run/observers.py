"""The observers of one run, and the thread that updates them.

Guarantees: an observer is begun before the first worker starts, and ended exactly once, after all threads of the run
have ended, however the run ends. Updates never overlap. An error of an observer is logged, and the observer is updated
no longer: a display or an exporter does not end a run.

Ownership: the list of observers belongs to the caller's thread; while the run's threads exist, to the observer thread.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from threadloom.pipeline.core import OneShotEvent
from threadloom.pipeline.observe import Observer, RunStatistics

LOG = logging.getLogger("threadloom.pipeline.observers")


class Observers:
    """The observers of one run; `run` is the target of their thread and sets `ended` as its last action."""

    def __init__(self, observers: Sequence[Observer], decided: OneShotEvent) -> None:
        """`decided` is set once the outcome of the run is decided."""
        self._waiting = list(observers)  # not yet begun
        self._begun: list[Observer] = []
        self._statistics: Callable[[], RunStatistics] | None = None  # of the run, between `begin` and `end`
        self._decided = decided
        self.ended = OneShotEvent()

    def begin(self, statistics: Callable[[], RunStatistics]) -> bool:
        """Begin all observers; return True if one of them has to be updated. Raises the error of an observer."""
        self._statistics = statistics
        while self._waiting:
            each = self._waiting[0]
            self._begun.append(each)  # before the call: an observer that a Ctrl-C interrupts as it begins is ended too
            self._waiting.pop(0)
            try:
                each.begin(statistics)
            except Exception:
                self._begun.remove(each)
                raise
        return any(each.interval is not None for each in self._begun)

    def run(self) -> None:
        """Update the observers at their intervals until the outcome of the run is decided."""
        try:
            begin = monotonic()
            due = {each: begin + each.interval for each in self._begun if each.interval is not None}
            while due and not self._decided.wait(max(0.0, min(due.values()) - monotonic())):
                for each in [observer for observer, at in due.items() if at <= monotonic()]:
                    if self._guarded(each, each.update):
                        due[each] = monotonic() + (each.interval or 0.0)
                    else:
                        del due[each]
        finally:
            self.ended.set()

    def end(self, *, complete: bool) -> None:
        """End all observers that have been begun. May be called again after a Ctrl-C."""
        self._waiting.clear()
        statistics = self._statistics
        while self._begun and statistics is not None:
            each = self._begun.pop()
            self._guarded(each, partial(each.end, statistics, complete=complete))
        self._statistics = None

    def _guarded(self, observer: Observer, call: Callable[[], None]) -> bool:
        """Call a method of an observer; log its error and return False if it raises one."""
        try:
            call()
        except Exception:
            LOG.exception("the observer %r failed; the run continues without it", type(observer).__name__)
            return False
        return True
