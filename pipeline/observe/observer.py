"""The interface of objects that follow a run: displays of its progress, and exporters of its statistics."""

from collections.abc import Callable
from typing import Protocol

from threadloom.pipeline.observe.statistics import RunStatistics


class Observer(Protocol):
    """An object that follows a run, for `start(observers=...)`: a display, or an exporter of the statistics.

    `begin` and `end` are called in the thread of the caller, `update` in a thread of the run. An error of `update` or
    `end` is logged, and does not end the run.
    """

    @property
    def interval(self) -> float | None:
        """Seconds between two calls of `update`; None if it is never called. Read after `begin`."""

    def begin(self, statistics: Callable[[], RunStatistics]) -> None:
        """Start to follow a run; `statistics` returns its current statistics, and may be called by any thread."""

    def update(self) -> None:
        """Show or export the current statistics."""

    def end(self, statistics: Callable[[], RunStatistics], *, complete: bool) -> None:
        """Stop to follow the run that was begun with `statistics`, and keep no reference to it.

        `complete` is True if the run ended with its input.
        """
