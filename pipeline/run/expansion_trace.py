"""The trace events of the elements that one call sends: one event each, or one for all.

A generator computes each element on demand, and each has an event with the time of its computation. A call that returns
all elements at once has one event, which lists them all. The first event names the input item.

Ownership: an `ExpansionTrace` belongs to the thread of its worker.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from threadloom.pipeline.core import Label
from threadloom.pipeline.observe import SKIP, Ids, RawEvent
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.item_labels import NOTHING, UNLABELLED, ItemLabels


@dataclass
class ExpansionTrace:
    """The events of one call of a stage with `expand`, or of a source."""

    record: Callable[[RawEvent], None]
    stage: str
    worker: int
    channel: Channel[Any, Any] | None
    """The input channel; None for a source."""
    labels: ItemLabels
    tag: Label | None
    """The label of the events; None for a source, whose elements are labelled themselves."""
    taken: Ids
    """The id of the input item, until an event has named it."""
    one_event_each: bool
    _first: bool = True
    _sent: list[int] = field(default_factory=list)  # ids of all elements, if they share one event

    def add(self, element: Any, start: int, end: int) -> None:
        """Record an element, computed between two times in nanoseconds; NOTHING at the end of the iterable."""
        is_item = element is not NOTHING and element is not SKIP
        if self._first or (self.one_event_each and element is not NOTHING):
            sent: Ids = self._sent if not self.one_event_each else id(element) if is_item else ()
            tag = self.tag if self.tag is not None else self.labels.of(element) if is_item else UNLABELLED
            depth = 0 if self.channel is None else self.channel.depth
            self.record((self.stage, self.worker, start, end, tag, depth, self.taken, sent))
            self.taken = ()  # later events come from the same input item
        if is_item and not self.one_event_each:
            self._sent.append(id(element))
        self._first = False
