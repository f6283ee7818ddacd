"""The settings that stages have whatever the type of their items, and those of a run: keyword arguments."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from threadloom.pipeline.core import Label
from threadloom.pipeline.observe import Trace
from threadloom.pipeline.policy import OnError
from threadloom.pipeline.run import Abortable, Watchdog


class StageOptions(TypedDict, total=False):
    """Keyword arguments of every `stage` and `join`."""

    workers: int
    """Threads that call the function. 1 unless given."""
    capacity: int
    """Bound of the channel in front of the stage: items, groups or tuples. 2 unless given."""
    ordered: bool
    """Whether results leave in the order in which the items came out of the channel in front, rather than as they are
    completed. Items that are skipped leave no hole. At most workers + capacity items are between the two; the elements
    of an expanded item are collected before they are sent."""
    on_error: OnError
    """What is done about an item whose function raises: FailFast() unless given; SkipFailed(...), Retry(...)."""
    limit: float
    """Seconds that one item may take, retries and their pauses included; of an expansion without retries, one element.

    A thread cannot be taken from what it calls. So an item that takes longer fails the run, whatever `on_error` says,
    with the stack of its thread; and that thread ends when the function returns, or is reported after the `grace`."""


class RunOptions(TypedDict, total=False):
    """Keyword arguments of `start` and `run`."""

    resources: Sequence[Abortable]
    """What is aborted with the channels, so that no worker waits for it in vain."""
    trace: Trace | None
    """Where every call of a stage function is recorded."""
    label: Callable[[Any], Label] | None
    """Says which item something is, in errors and traces; it must know every type of item in the graph."""
    grace: float
    """Seconds that threads may take to end before they are reported. 10 unless given."""
    watchdog: Watchdog | None
    """What finds a run that stands still. Watchdog() unless given: a warning in the log after a minute."""
    clock: Callable[[], int]
    """Counts nanoseconds."""
