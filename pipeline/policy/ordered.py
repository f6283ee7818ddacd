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

from threadloom.pipeline.policy.admission import Admission, Ticket


class NumberedAdmission(Admission[Any, tuple[int, Any]]):
    """Another admission state, whose items leave it with the numbers 0, 1, 2, ...; see `Channel.sent`."""

    keyed = True

    def __init__(self, inner: Admission[Any, Any], capacity: int, workers: int) -> None:
        self._inner = inner
        self._capacity = capacity
        self.keyed = inner.keyed
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

    def sent(self) -> None:
        """Note that the results of the oldest item have left."""
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
    """An item with all its results."""

    item: Any
    results: list[Any]


class ReorderBuffer:
    """The results of one stage that have not left yet."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._kept: dict[int, FinishedItem] = {}
        self._oldest = 0  # the number whose results leave next
        self._sending = False  # whether a worker is between a `next` that returned something and the one after it

    def finish(self, number: int, finished: FinishedItem) -> FinishedItem | None:
        """Keep what was finished. Return what the caller has to send now, and then call `next`; None: nothing."""
        with self._lock:
            self._kept[number] = finished
            return None if self._sending else self._pop()

    def next(self) -> FinishedItem | None:
        """Say that what was returned last has been sent; return what the caller has to send after it, if anything."""
        with self._lock:
            return self._pop()

    def _pop(self) -> FinishedItem | None:
        finished = self._kept.pop(self._oldest, None)
        self._sending = finished is not None
        self._oldest += self._sending
        return finished
