"""Admission policies: pure state machines that decide which items a channel accepts, and which is taken next.

A policy (`Fifo`, `InOrder`, and in other modules `Gather`) is a frozen setting of a graph; `begin(capacity)` creates
its state for one run.
The channel calls the state under its lock, so nothing here waits, locks or reads a clock, and tests drive it event by
event: `fits` → `put` → `ready` → `take` → `done`, and `finish` at the end of the input.

Bounds, with n the capacity:

| policy  | holds at most                                                                                             |
| ------- | --------------------------------------------------------------------------------------------------------- |
| Fifo    | n items                                                                                                   |
| InOrder | n items, and one more for each key whose next item is among them                                          |
| Gather  | n groups plus the keys open when the n-th was completed, each of `count` items; then no key is opened     |

InOrder and Gather accept more than n items because a full channel may not drain without the missing item.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from threadloom.pipeline.core import AdmissionError

In = TypeVar("In")
Out = TypeVar("Out")
Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)

Ticket = Any
"""Key data of an item. Computed by the policy's functions once per item, before the channel's lock is acquired."""


class Admission(ABC, Generic[In, Out]):
    """The state of a policy in one run. Owned by one channel, which calls all methods but `ticket` under its lock."""

    keyed = True
    """True if `fits` depends on the item, so that all waiting senders have to check again after each change."""
    timed = False
    """True if items become ready as time passes, so that the channel calls `advance` and `due`."""
    arranges = False
    """True if the channel has to call `arrange` with everything that it has taken."""

    @abstractmethod
    def ticket(self, item: In) -> Ticket:
        """Return the key data of `item` for the other calls. Calls the user's functions; uses no state."""

    @abstractmethod
    def fits(self, ticket: Ticket) -> bool:
        """Return True if the item with this ticket may be put now."""

    @abstractmethod
    def put(self, ticket: Ticket, item: In) -> None:
        """Add an item that `fits`. Raises `AdmissionError` for a duplicate."""

    @abstractmethod
    def ready(self) -> bool:
        """Return True if something can be taken now."""

    @abstractmethod
    def take(self, worker: int) -> Out:
        """Return the next item or group for `worker`. Only if `ready`."""

    @abstractmethod
    def depth(self) -> int:
        """Return how much of the capacity is in use."""

    def advance(self, now: int) -> None:
        """Record the time, in nanoseconds. Called before the other methods, if the policy is `timed`."""

    def due(self) -> int | None:
        """Return the time at which something becomes ready if nothing else happens, or None."""
        return None

    def arrange(self, out: Out) -> Out:
        """Return a group that was taken, in the order of a user's function. Called without the channel's lock."""
        return out

    def done(self, worker: int) -> None:
        """Record that `worker` has finished the item it took last."""

    def sent(self) -> None:
        """Record that the results of the oldest item taken have been sent. Called by ordered stages only."""

    def consumers_changed(self, workers: int) -> None:
        """Record that the stage now has `workers` workers."""

    def in_hand(self) -> int:
        """Return the number of workers whose `done` may release more items."""
        return 0

    def missing(self) -> str | None:
        """Describe the missing items if nothing can become ready before another item is put; otherwise return None."""
        return None

    def finish(self) -> None:
        """Record the end of the input. Called with nothing ready and `in_hand` 0.

        Raises `AdmissionError` if items are left over.
        """


class Policy(ABC, Generic[Item_contra]):
    """An admission setting of a stage; `begin` creates its `Admission` state for one run.

    If it has a true attribute `exclusive`, workers call `done` after they have sent the results of an item.
    """

    @abstractmethod
    def begin(self, capacity: int) -> Admission[Any, Any]:
        """Return the initial state for a channel of this capacity."""


@dataclass(frozen=True)
class Fifo(Policy[object]):
    """First in, first out."""

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return FifoState(capacity)


@dataclass(frozen=True)
class InOrder(Policy[Item_contra]):
    """The items of each key are taken in the order of their index, without gaps; keys are independent.

    `order(item)` returns (key, index). With `exclusive`, at most one item per key is being processed at a time: the
    next is taken after the results of its predecessor have been sent, so results leave in order too. Without it,
    several workers may hold consecutive items of one key.

    `first` is the first index of a key: one number for all keys, a mapping, or a function of the key. `count` is the
    number of items per key: after `count` items the state of a key is dropped, and a key with fewer at the end of the
    input is an error. None means that keys may continue until the end of the run.
    """

    order: Callable[[Item_contra], tuple[Hashable, int]]
    exclusive: bool = True
    first: int | Mapping[Any, int] | Callable[[Any], int] = 0
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"InOrder: expected count >= 1 or None, got {self.count}")

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return InOrderState(self, capacity)


class FifoState(Admission[Item, Item]):
    """A bounded queue."""

    keyed = False

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.items: deque[Item] = deque()  # at most capacity

    def ticket(self, item: Item) -> Ticket:
        return None

    def fits(self, ticket: Ticket) -> bool:
        return len(self.items) < self._capacity

    def put(self, ticket: Ticket, item: Item) -> None:
        self.items.append(item)

    def ready(self) -> bool:
        return bool(self.items)

    def take(self, worker: int) -> Item:
        return self.items.popleft()

    def depth(self) -> int:
        return len(self.items)


class OrderTicket(NamedTuple):
    """The key of an item, its index (`index` is a method of tuples), and the first index of that key."""

    key: Hashable
    place: int
    first: int


class InOrderState(Admission[Item, Item]):
    """State of `InOrder`: for each key the index to take next, and the items that arrived before their turn."""

    def __init__(self, policy: InOrder[Item], capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        # Invariant: len(_held) <= capacity + the number of keys whose next item is held. Ensured by `fits`.
        self._held: dict[tuple[Hashable, int], Item] = {}
        # Key -> index to take next, and the index after its last. A key is added at its first ticket and removed at its
        # last take (see `count`).
        self._next: dict[Hashable, int] = {}
        self._end: dict[Hashable, int] = {}
        # Keys whose next item is held and may be taken, without duplicates, in the order of becoming ready.
        self._ready: deque[Hashable] = deque()
        # Worker -> key of its item. Only with `exclusive`; without duplicates, and disjoint from _ready.
        self._hands: dict[int, Hashable] = {}

    def ticket(self, item: Item) -> OrderTicket:
        key, index = self._policy.order(item)
        first = self._policy.first
        if not isinstance(first, int):
            first = first.get(key, 0) if isinstance(first, Mapping) else first(key)
        return OrderTicket(key, index, first)

    def fits(self, ticket: OrderTicket) -> bool:
        return len(self._held) < self._capacity or ticket.place <= self._expected(ticket)

    def put(self, ticket: OrderTicket, item: Item) -> None:
        key, index = ticket.key, ticket.place
        expected = self._expected(ticket)
        if index < expected or (key, index) in self._held:
            raise AdmissionError(
                f"duplicate item {index} of key {key!r}: expected item {expected}. The `order` of the stage must "
                f"return a unique index for each item of a key, from `first` upwards"
            )
        self._held[key, index] = item
        if index == expected:
            self._offer(key)

    def ready(self) -> bool:
        return bool(self._ready)

    def take(self, worker: int) -> Item:
        key = self._ready.popleft()
        index = self._next[key]
        item = self._held.pop((key, index))
        if index + 1 == self._end.get(key):
            del self._next[key], self._end[key]
        else:
            self._next[key] = index + 1
        if self._policy.exclusive:
            self._hands[worker] = key
        else:
            self._offer(key)
        return item

    def done(self, worker: int) -> None:
        if self._policy.exclusive:
            self._offer(self._hands.pop(worker))

    def in_hand(self) -> int:
        return len(self._hands)

    def depth(self) -> int:
        return len(self._held)

    def missing(self) -> str | None:
        return None if self._ready or self._hands else self._gaps()

    def finish(self) -> None:
        short = {key: index for key, index in self._next.items() if self._policy.count is not None}
        if self._held or short:
            raise AdmissionError(
                f"the input ended with a gap: {self._gaps()}. An item was filtered out or never created, or `first` or "
                f"`count` does not match the producer"
            )

    def _offer(self, key: Hashable) -> None:
        index = self._next.get(key)
        if index is not None and (key, index) in self._held and key not in self._hands.values():
            self._ready.append(key)

    def _expected(self, ticket: OrderTicket) -> int:
        expected = self._next.get(ticket.key)
        if expected is None:
            expected = self._next[ticket.key] = ticket.first
            if self._policy.count is not None:
                self._end[ticket.key] = ticket.first + self._policy.count
        return expected

    def _gaps(self) -> str:
        waiting: dict[Hashable, list[int]] = {key: [] for key in self._next}
        for key, index in self._held:
            waiting.setdefault(key, []).append(index)
        gaps = [
            f"key {key!r} waits for item {self._next.get(key, '(none: it is complete)')}"
            + (f" and holds {format_some(sorted(held))}" if held else "")
            for key, held in waiting.items()
            if held or self._policy.count is not None
        ]
        return "; ".join(gaps[:4]) + (f"; and {len(gaps) - 4} more keys" if len(gaps) > 4 else "")


def format_some(values: Iterable[object], limit: int = 8) -> str:
    """Return the first `limit` values as text, and the number of the others."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")
