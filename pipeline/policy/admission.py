"""Which item may enter a channel, and which may be taken next: pure state machines, apart from threads.

A policy (`Fifo`, `InOrder`, `Gather`) is a frozen setting that a graph holds; `begin(capacity)` makes its state for one
run. The channel calls the state under its lock, so nothing here waits, locks or reads a clock, and a test drives it
event by event: `fits` → `put` → `ready` → `take` → `done`, and `finish` at the end of the input.

Bounds, with n the capacity:

| policy  | held at most                                                                                              |
| ------- | --------------------------------------------------------------------------------------------------------- |
| Fifo    | n items                                                                                                   |
| InOrder | n items, and one more for each key whose next item is among them                                          |
| Gather  | no key is opened while n groups are complete, so n + the keys open at that moment, each of `count` items  |

InOrder and Gather accept more than n because the item that a full channel lacks may be the one that empties it.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import AdmissionError

In = TypeVar("In")
Out = TypeVar("Out")
Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)

Ticket = Any
"""What `ticket(item)` read off an item: the policy's own functions run once per item, before the channel's lock."""


class Admission(ABC, Generic[In, Out]):
    """The state of a policy in one run. Owned by one channel; every call but `ticket` is made under its lock."""

    keyed = True
    """Whether room depends on the item itself, so that every waiting sender has to look again after each change."""

    @abstractmethod
    def ticket(self, item: In) -> Ticket:
        """Read off `item` what the other calls need to know of it. Runs the user's functions; touches no state."""

    @abstractmethod
    def fits(self, ticket: Ticket) -> bool:
        """Whether the item with this ticket may be put now."""

    @abstractmethod
    def put(self, ticket: Ticket, item: In) -> None:
        """Take in an item that `fits`."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether something can be taken now."""

    @abstractmethod
    def take(self, worker: int) -> Out:
        """Hand the next thing to `worker`; only when `ready`."""

    @abstractmethod
    def depth(self) -> int:
        """How much of the capacity is in use."""

    def done(self, worker: int) -> None:
        """Note that `worker` has finished what it took last."""

    def sent(self) -> None:
        """Note that the results of the oldest item taken have left; only ordered stages say so."""

    def consumers_changed(self, workers: int) -> None:
        """Note that the stage now has so many workers."""

    def in_hand(self) -> int:
        """How many workers hold something whose `done` may make more ready."""
        return 0

    def missing(self) -> str | None:
        """Say what is missing if nothing can be taken, whatever the workers do, until another item is put."""
        return None

    def finish(self) -> None:
        """Note the end of the input, with nothing ready and nothing in hand; raise if something is left over."""


class Policy(ABC, Generic[Item_contra]):
    """A setting that makes an `Admission` for each run.

    One with a true attribute `exclusive` has its workers say `done` once the outputs of an item have been sent.
    """

    @abstractmethod
    def begin(self, capacity: int) -> Admission[Any, Any]:
        """Return a fresh state for a channel of this capacity."""


@dataclass(frozen=True)
class Fifo(Policy[object]):
    """Items are taken in the order in which they were put, whatever they are."""

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return FifoState(capacity)


@dataclass(frozen=True)
class InOrder(Policy[Item_contra]):
    """The items of one key are taken in the order of their index, without gaps; keys do not wait for each other.

    `order(item)` gives (key, index). With `exclusive`, at most one item of a key is in a worker's hands at a time: the
    next is handed out once the outputs of the one before have been sent, so they leave in order too. Without it,
    several workers may hold consecutive items of one key.

    `first` is the index at which a key begins: one number for all, a mapping, or a function of the key. `count` is how
    many items a key has: after that many its state is dropped, and a key that is short of them at the end of the input
    is an error. Leave it None for keys that go on for the whole run.
    """

    order: Callable[[Item_contra], tuple[Hashable, int]]
    exclusive: bool = True
    first: int | Mapping[Any, int] | Callable[[Any], int] = 0
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"InOrder needs a count of at least 1 item per key, or None, got {self.count}")

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return InOrderState(self, capacity)


@dataclass(frozen=True)
class Gather(Policy[Item_contra]):
    """Items are collected by key into lists of `count`, and a list is taken as one thing.

    Groups are taken in the order in which they became complete. A list is in order of arrival, or sorted by `sort`. At
    the end of the input an incomplete group is an error, or with `partial` it is taken as it is, oldest first. Without
    `key` all items are of one group: plain batching.
    """

    key: Callable[[Item_contra], Hashable] | None = None
    count: int = 1
    sort: Callable[[Item_contra], Any] | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Gather needs a count of at least 1 item per group, got {self.count}")

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return GatherState(self, capacity)


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


class InOrderState(Admission[Item, Item]):
    """Per key, the index to hand out next and the later items that arrived before it."""

    def __init__(self, policy: InOrder[Item], capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        # Invariant: len(_held) <= capacity + the number of keys whose next item is held. `fits` is what keeps it.
        self._held: dict[tuple[Hashable, int], Item] = {}
        # Key -> index to hand out next. A key enters at its first ticket and leaves at its last take (see `count`).
        self._next: dict[Hashable, int] = {}
        # Keys whose next item is held and may be taken, each once, in the order in which they became so.
        self._ready: deque[Hashable] = deque()
        # Worker -> key of what it holds. Only with `exclusive`; no key is in it twice, and none is also in _ready.
        self._hands: dict[int, Hashable] = {}

    def ticket(self, item: Item) -> tuple[Hashable, int]:
        return self._policy.order(item)

    def fits(self, ticket: Ticket) -> bool:
        return len(self._held) < self._capacity or ticket[1] <= self._expected(ticket[0])

    def put(self, ticket: Ticket, item: Item) -> None:
        key, index = ticket
        expected = self._expected(key)
        if index < expected or (key, index) in self._held:
            raise AdmissionError(
                f"item {index} of key {key!r} came a second time: the key waits for item {expected}. The `order` of "
                f"the stage must give each item of a key an index of its own, from `first` upwards"
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
        if self._policy.count is not None and index + 1 == self._first(key) + self._policy.count:
            del self._next[key]
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
                f"the input ended with a gap: {self._gaps()}. An item was filtered out or never made, or `first` or "
                f"`count` does not say what the producer sends"
            )

    def _offer(self, key: Hashable) -> None:
        index = self._next.get(key)
        if index is not None and (key, index) in self._held and key not in self._hands.values():
            self._ready.append(key)

    def _expected(self, key: Hashable) -> int:
        expected = self._next.get(key)
        if expected is None:
            expected = self._next[key] = self._first(key)
        return expected

    def _first(self, key: Hashable) -> int:
        first = self._policy.first
        if isinstance(first, int):
            return first
        return first.get(key, 0) if isinstance(first, Mapping) else first(key)

    def _gaps(self) -> str:
        waiting: dict[Hashable, list[int]] = {key: [] for key in self._next}
        for key, index in self._held:
            waiting.setdefault(key, []).append(index)
        gaps = [
            f"key {key!r} waits for item {self._expected(key)}" + (f" and holds {_some(sorted(held))}" if held else "")
            for key, held in waiting.items()
            if held or self._policy.count is not None
        ]
        return "; ".join(gaps[:4]) + (f"; and {len(gaps) - 4} keys more" if len(gaps) > 4 else "")


class GatherState(Admission[Item, list[Item]]):
    """Open groups by key, and complete groups in the order in which they became so."""

    def __init__(self, policy: Gather[Item], capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        # Key -> its items so far; never empty and always shorter than `count`.
        self._open: dict[Hashable, list[Item]] = {}
        # Invariant: while len(_complete) >= capacity, no key enters _open. `fits` is what keeps it.
        self._complete: deque[list[Item]] = deque()

    def ticket(self, item: Item) -> Hashable:
        return None if self._policy.key is None else self._policy.key(item)

    def fits(self, ticket: Ticket) -> bool:
        return ticket in self._open or len(self._complete) < self._capacity

    def put(self, ticket: Ticket, item: Item) -> None:
        group = self._open.setdefault(ticket, [])
        group.append(item)
        if len(group) == self._policy.count:
            self._complete.append(self._open.pop(ticket))

    def ready(self) -> bool:
        return bool(self._complete)

    def take(self, worker: int) -> list[Item]:
        group = self._complete.popleft()
        if self._policy.sort is not None:
            group.sort(key=self._policy.sort)
        return group

    def depth(self) -> int:
        return len(self._complete)

    def finish(self) -> None:
        if self._policy.partial:
            self._complete.extend(self._open.values())
            self._open.clear()
        if self._open and not self._complete:
            short = [f"{key!r} has {len(group)}" for key, group in self._open.items()]
            raise AdmissionError(
                f"the input ended with incomplete groups: of {self._policy.count} items each, key {_some(short)}. An "
                f"item was filtered out or never made, or `count` is not what the producer sends; `partial=True` hands "
                f"out what there is"
            )


def _some(values: Iterable[object], limit: int = 8) -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")
