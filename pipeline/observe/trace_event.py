"""What a trace keeps of one call of a stage function."""

from collections.abc import Sequence
from typing import NamedTuple

from threadloom.pipeline.core import Label

Ids = int | Sequence[int]
"""One id, or those of a group: a number that is alone needs no container, which would cost as much as the event."""

RawEvent = tuple[str, int, int, int, Label, int, Ids, Ids]
"""The fields of a TraceEvent: a worker hands over a plain tuple, which costs a quarter of a named one."""


class TraceEvent(NamedTuple):
    """One call of a stage function. Waiting, `acquire` and sending are not in it: they are the gaps between events."""

    stage: str
    """The stage's name."""
    worker: int
    """Which of its workers, counted from 0."""
    start_ns: int
    """When the function was called, in the nanoseconds of the run's clock."""
    end_ns: int
    """When it returned."""
    label: Label
    """The label of the item as it was before the call."""
    depth: int
    """Depth of the channel in front of the stage at `end_ns`; 0 for a source."""
    taken: tuple[int, ...] = ()
    """id() of each item that the call was given; empty for a source, and for the later elements of an expansion."""
    sent: tuple[int, ...] = ()
    """id() of each item that it made. While an item is in a channel no other object has its id, so `arrows` can match
    the two afterwards, and no item has to be wrapped to carry a number of ours."""

    @staticmethod
    def of(raw: RawEvent) -> "TraceEvent":
        """Name the fields of what a worker handed over."""
        return TraceEvent(*raw[:6], _tuple(raw[6]), _tuple(raw[7]))


def _tuple(ids: Ids) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(ids)
