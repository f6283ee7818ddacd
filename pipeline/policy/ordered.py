"""Ordered output: the results of a stage leave in the order in which its items were taken from the input channel.

Two pure parts: `NumberedAdmission` numbers the items taken from a channel and bounds how far work may run ahead of the
oldest unsent item; `ReorderBuffer` keeps results that are finished too early. Neither waits: the worker that finishes
the oldest item sends its results and those of all consecutive finished items, while the other workers continue.

Guarantees: results leave in the order of the numbers, by one worker at a time; an item without results leaves no gap;
at most `window` items are between taken and sent, which bounds the results kept.

Ownership: `NumberedAdmission` is guarded by the channel's lock, `ReorderBuffer` by its own, which is held for a few
operations only.
"""

from _thread import allocate_lock
from dataclasses import dataclass
from typing import Any

from threadloom.pipeline.core import StageFailure
from threadloom.pipeline.policy.admission import Admission, Ticket


class NumberedAdmission(Admission[Any, tuple[int, Any]]):
    """An admission state around another, `inner`, that numbers the items taken: 0, 1, 2, ...; see `Channel.sent`."""

    keyed = True

    def __init__(self, inner: Admission[Any, Any], capacity: int, workers: int) -> None:
        self._inner = inner
        self._capacity = capacity
        self.keyed = inner.keyed
        self.timed = inner.timed
        self.arranges = inner.arranges
        self.window = capacity + workers
        # Invariant: _sent <= _taken <= _sent + the largest window so far.
        self._taken = 0
        self._sent = 0

    def ticket(self, item: Any) -> Ticket:
        return self._inner.ticket(item)

    def fits(self, ticket: Ticket) -> bool:
        return self._inner.fits(ticket)

    def put(self, ticket: Ticket, item: Any) -> None:
        self._inner.put(ticket, item)

    def ready(self) -> bool:
        return self._taken - self._sent < self.window and self._inner.ready()

    def take(self, worker: int) -> tuple[int, Any]:
        item = self._inner.take(worker)
        self._taken += 1
        return self._taken - 1, item

    def arrange(self, out: tuple[int, Any]) -> tuple[int, Any]:
        return out[0], self._inner.arrange(out[1])

    def advance(self, now: int) -> None:
        self._inner.advance(now)

    def due(self) -> int | None:
        return self._inner.due() if self._taken - self._sent < self.window else None

    def sent(self) -> None:
        """Record that the results of the oldest item have been sent."""
        self._sent += 1

    def consumers_changed(self, workers: int) -> None:
        self.window = self._capacity + workers

    def done(self, worker: int) -> None:
        self._inner.done(worker)

    def in_hand(self) -> int:
        ahead = self._taken - self._sent
        return ahead if ahead >= self.window else self._inner.in_hand()

    def depth(self) -> int:
        return self._inner.depth()

    def missing(self) -> str | None:
        return None if self._taken > self._sent else self._inner.missing()

    def finish(self) -> None:
        self._inner.finish()


@dataclass(frozen=True, slots=True)
class FinishedItem:
    """A finished item with all its results."""

    item: Any
    results: list[Any]
    failure: StageFailure | None = None
    """The failure of this item in a run that is drained: nothing is sent after its results."""


class ReorderBuffer:
    """The finished items of one stage whose results have not been sent."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._kept: dict[int, FinishedItem] = {}
        self._oldest = 0  # number of the item to send next
        self._closed = False  # set once, by `close`
        self._sending = False  # True while a worker sends an item returned by `finish` or `next`

    def finish(self, number: int, finished: FinishedItem) -> FinishedItem | None:
        """Add a finished item. Return the item that the caller must send now before it calls `next`, or None."""
        with self._lock:
            if self._closed:
                return None
            self._kept[number] = finished
            return None if self._sending else self._pop()

    def next(self) -> FinishedItem | None:
        """Record that the item returned last has been sent; return the next one for the caller to send, or None."""
        with self._lock:
            return self._pop()

    def close(self) -> None:
        """Drop all items, now and from now on."""
        with self._lock:
            self._closed = True
            self._kept, dropped = {}, self._kept
        del dropped  # outside the lock: this may run finalisers

    def _pop(self) -> FinishedItem | None:
        finished = self._kept.pop(self._oldest, None)
        self._sending = finished is not None
        self._oldest += self._sending
        return finished
