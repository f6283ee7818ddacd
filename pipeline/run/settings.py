"""The settings of one run: the keyword arguments of `Graph.start` as one value, with their defaults.

`RunOptions` of the room `graph` documents each field; a test compares the names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from threadloom.pipeline.core import Label
from threadloom.pipeline.observe import Trace
from threadloom.pipeline.run.commands import Abortable
from threadloom.pipeline.run.watchdog import Watchdog


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run."""

    resources: Sequence[Abortable] = ()
    trace: Trace | None = None
    label: Callable[[Any], Label] | None = None
    grace: float = 10.0
    watchdog: Watchdog | None = Watchdog()  # noqa: RUF009 - frozen
    clock: Callable[[], int] = perf_counter_ns
