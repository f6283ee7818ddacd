"""Events of a trace."""

from collections.abc import Sequence
from typing import NamedTuple

from threadloom.pipeline.core import Label

Ids = int | Sequence[int]
"""The id of an item, or the ids of several. A single id needs no container, which would cost as much as the event."""

RawEvent = tuple[str, int, int, int, Label, int, Ids, Ids]
"""The fields of a TraceEvent as a plain tuple, which costs workers a quarter of a named one."""


class TraceEvent(NamedTuple):
    """One call of a stage function. Waiting, `acquire` and sending are the gaps between events."""

    stage: str
    """Name of the stage."""
    worker: int
    """Index of the worker in its stage, from 0."""
    start_ns: int
    """Time of the call, in nanoseconds of the run's clock."""
    end_ns: int
    """Time of its return."""
    label: Label
    """Label of the item before the call."""
    depth: int
    """Depth of the stage's input channel at `end_ns`; 0 for a source."""
    taken: tuple[int, ...] = ()
    """id() of each input item; empty for a source, and for all elements of an expansion but the first."""
    sent: tuple[int, ...] = ()
    """id() of each result. While an item is in a channel, no other object has its id, so `arrows` can match results
    with inputs afterwards, and items need no wrapper with a number."""

    @staticmethod
    def of(raw: RawEvent) -> "TraceEvent":
        """Return the event with these fields."""
        return TraceEvent(*raw[:6], _tuple(raw[6]), _tuple(raw[7]))


def _tuple(ids: Ids) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(ids)
