"""The admission policy of batches: groups by key, bounded by number, weight and time. A pure state machine.

The channel records the time by `advance`, and asks by `due` when the next group is complete because of its age.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Generic, NamedTuple, TypeVar

from threadloom.pipeline.core import AdmissionError
from threadloom.pipeline.policy.admission import Admission, Policy, format_some

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)


@dataclass(frozen=True)
class Gather(Policy[Item_contra]):
    """Items are collected by key into groups, lists of `count` items that are taken as a whole.

    Groups are taken in the order of their completion. A group is in order of arrival, or sorted by `sort`. At the end
    of the input an incomplete group is an error, or with `partial` it is taken as it is, oldest first. Without `key`,
    all items have the same key: plain batching.

    With `weight`, `count` is the largest weight of a group: the sum of `weight(item)`, for example a number of tokens.
    A group is complete when it has this weight, or when the next item would exceed it; an item that is heavier is a
    group of one. With `within`, a group is also complete `within` seconds after the arrival of its first item, by the
    clock of the run. Both need `partial=True`.
    """

    key: Callable[[Item_contra], Hashable] | None = None
    count: int = 1
    sort: Callable[[Item_contra], Any] | None = None
    partial: bool = False
    within: float | None = None
    weight: Callable[[Item_contra], float] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Gather: expected count >= 1, got {self.count}")
        if self.within is not None and not 0 < self.within < inf:
            raise ValueError(f"Gather: expected within > 0 seconds or None, got {self.within}")
        if (self.within is not None or self.weight is not None) and not self.partial:
            raise ValueError("Gather: within and weight create groups of fewer items than count: pass partial=True")

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return GatherState(self, capacity)


class GroupTicket(NamedTuple):
    """The key of the group of an item, and the weight that the item adds to it."""

    key: Hashable
    weight: float


@dataclass
class _Group(Generic[Item]):
    """The items of a key so far."""

    since: int  # arrival of the first item, in nanoseconds
    items: list[Item] = field(default_factory=list)
    weight: float = 0


class GatherState(Admission[Item, list[Item]]):
    """State of `Gather`: open groups by key, and complete groups in the order of completion."""

    def __init__(self, policy: Gather[Item], capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        self.timed = policy.within is not None
        self.arranges = policy.sort is not None
        self._now = 0  # set by `advance` only
        self._within = 0 if policy.within is None else round(policy.within * 1e9)
        # Key -> its items so far, at least one, which weigh less than `count`. In the order of their first items.
        self._open: dict[Hashable, _Group[Item]] = {}
        # Invariant: while len(_complete) >= capacity, no key is added to _open. Ensured by `fits`.
        self._complete: deque[list[Item]] = deque()

    def ticket(self, item: Item) -> GroupTicket:
        key = None if self._policy.key is None else self._policy.key(item)
        weight = 1 if self._policy.weight is None else self._policy.weight(item)
        if not weight > 0 or not isfinite(weight):
            raise AdmissionError(f"expected the weight of an item to be a number above 0, got {weight!r}")
        return GroupTicket(key, weight)

    def advance(self, now: int) -> None:
        self._now = now
        while (due := self.due()) is not None and due <= now:
            self._close(next(iter(self._open)))

    def due(self) -> int | None:
        if not self.timed or not self._open:
            return None
        return next(iter(self._open.values())).since + self._within

    def fits(self, ticket: GroupTicket) -> bool:
        return len(self._complete) < self._capacity or self._joins(ticket)

    def put(self, ticket: GroupTicket, item: Item) -> None:
        if ticket.key in self._open and not self._joins(ticket):
            self._close(ticket.key)
        group = self._open.get(ticket.key)
        if group is None:
            group = self._open[ticket.key] = _Group(self._now)
        group.items.append(item)
        group.weight += ticket.weight
        if group.weight >= self._policy.count:
            self._close(ticket.key)

    def ready(self) -> bool:
        return bool(self._complete)

    def take(self, worker: int) -> list[Item]:
        return self._complete.popleft()

    def arrange(self, out: list[Item]) -> list[Item]:
        if self._policy.sort is not None:
            out.sort(key=self._policy.sort)
        return out

    def depth(self) -> int:
        return len(self._complete)

    def finish(self) -> None:
        if self._policy.partial:
            for key in list(self._open):
                self._close(key)
        if self._open and not self._complete:
            short = [f"{key!r} has {len(group.items)}" for key, group in self._open.items()]
            raise AdmissionError(
                f"the input ended with incomplete groups: expected {self._policy.count} items each, but key "
                f"{format_some(short)}. An item was filtered out or never created, or `count` does not match the "
                f"producer; `partial=True` accepts incomplete groups"
            )

    def _joins(self, ticket: GroupTicket) -> bool:
        """Return True if the item can be added to the open group of its key."""
        group = self._open.get(ticket.key)
        return group is not None and group.weight + ticket.weight <= self._policy.count

    def _close(self, key: Hashable) -> None:
        self._complete.append(self._open.pop(key).items)
