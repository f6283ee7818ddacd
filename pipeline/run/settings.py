"""The settings of one run: the keyword arguments of `Graph.start` as one value, with their defaults.

`RunOptions` of the room `graph` documents each field; a test compares the names.
"""

from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from threadloom.pipeline.core import Label
from threadloom.pipeline.observe import Observer, ProgressBar, RawEvent, Stage, Trace
from threadloom.pipeline.policy import OnFailure
from threadloom.pipeline.run.commands import Abortable
from threadloom.pipeline.run.watchdog import Watchdog
from threadloom.pipeline.run.worker_control import Controller, in_order


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run."""

    resources: Sequence[Abortable] = ()
    trace: Trace | None = None
    label: Callable[[Any], Label] | None = None
    grace: float = 10.0
    on_failure: OnFailure | str = OnFailure.STOP
    watchdog: Watchdog | None = Watchdog()  # noqa: RUF009 - frozen
    controller: Controller | None = None
    progress: bool = False
    observers: Sequence[Observer] = ()
    copy_context: bool = False
    clock: Callable[[], int] = perf_counter_ns

    def all_observers(self) -> tuple[Observer, ...]:
        """Return the observers, with a progress bar if it is asked for."""
        return (*self.observers, *((ProgressBar(),) if self.progress else ()))

    def recorder(self, stages: Sequence[Stage]) -> Callable[[RawEvent], None] | None:
        """Declare the graph to the trace, and return the function that records an event; None without a trace."""
        if self.trace is None:
            return None
        selective = {each.name for each in stages if each.when or each.via}
        self.trace.declare({each.name: each.after for each in stages}, selective=selective)
        return self.trace.record

    def in_order(self, graph: str, stages: Sequence[Stage]) -> Sequence[Stage]:
        """Return the stages as they are run: those that a controller may give a second worker keep their order."""
        if self.controller is None:
            return stages
        return in_order(stages, self.controller.limits_for(graph, stages))

    def context(self) -> Context | None:
        """Return a copy of the context variables of the calling thread if workers are to have them, or None."""
        return copy_context() if self.copy_context else None
