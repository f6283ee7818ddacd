"""Priorities: the item with the highest key is taken first."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import AdmissionError
from threadloom.pipeline.policy.admission import Admission, Policy, Ticket

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)


@dataclass(frozen=True)
class Priority(Policy[Item_contra], Generic[Item_contra]):
    """The item with the highest key is taken first; items of equal keys in the order of their arrival.

    `key(item)` returns a number, and is called once per item by the sending worker. The choice is among the items in
    the channel, at most `capacity`: a larger capacity lets an urgent item overtake more of the others. Items that wait
    for a place in a full channel have no priority yet.
    """

    key: Callable[[Item_contra], float]

    def begin(self, capacity: int) -> Admission[Any, Any]:
        return PriorityState(self, capacity)


class PriorityState(Admission[Item, Item]):
    """State of `Priority`: a heap. Keys are plain numbers, so that no user code runs when they are compared."""

    def __init__(self, policy: Priority[Item], capacity: int) -> None:
        self._policy = policy
        self._capacity = capacity
        self._heap: list[tuple[float, int, Item]] = []  # (-key, number of the arrival, item), at most capacity
        self._arrived = 0

    def ticket(self, item: Item) -> Ticket:
        key: object = self._policy.key(item)
        number = int(key) if isinstance(key, Integral) else float(key) if isinstance(key, Real) else math.nan
        if number != number:
            raise AdmissionError(f"the key of a Priority returned {key!r}, expected a number")
        return -number

    def fits(self, ticket: Ticket) -> bool:
        return len(self._heap) < self._capacity

    def put(self, ticket: Ticket, item: Item) -> None:
        heapq.heappush(self._heap, (ticket, self._arrived, item))
        self._arrived += 1

    def ready(self) -> bool:
        return bool(self._heap)

    def take(self, worker: int) -> Item:
        return heapq.heappop(self._heap)[2]

    def depth(self) -> int:
        return len(self._heap)
