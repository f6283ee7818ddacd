"""A fixed pool of pre-allocated elements.

Guarantees: the pool creates no elements, so the number in use is bounded; an element has one holder at a time; an abort
wakes all waiting threads. Assumption: each element taken is given back once. If elements travel along a pipeline, they
must be taken in the order of the items they serve (by one stage with one worker); otherwise a later item may hold the
element that an earlier item needs, and the pipeline deadlocks.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from threadloom.pipeline.core.errors import Cancelled

Element = TypeVar("Element")


@dataclass(frozen=True)
class PoolStatistics:
    """Usage of a pool."""

    size: int
    """Number of elements of the pool."""
    lent: int
    """Elements currently in use."""
    most_lent: int
    """Largest number in use at once so far; if below `size`, the pool is larger than needed."""
    waited: float
    """Total seconds that `take` waited; if large, the pool is the bottleneck."""


class Pool(Generic[Element]):
    """A pool of elements; `take` blocks while none is free."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._elements = tuple(elements)
        self._free = deque(self._elements)  # changed only by take() and give_back(), under the lock
        self._size = len(self._free)
        if not self._size:
            raise ValueError("expected at least one element for a pool, got none: every take() would block forever")
        self._changed = threading.Condition()
        self._aborted = False
        self._most_lent = 0
        self._waited = 0.0

    def total(self, size: Callable[[Element], int]) -> int:
        """Return the sum of `size(element)` over all elements."""
        return sum(map(size, self._elements))

    def take(self) -> Element:
        """Return a free element, waiting until there is one. Raises `Cancelled` once the pool is aborted."""
        with self._changed:
            if not self._free and not self._aborted:
                begin = time.perf_counter()
                self._changed.wait_for(lambda: self._free or self._aborted)
                self._waited += time.perf_counter() - begin
            if self._aborted:
                raise Cancelled
            element = self._free.popleft()
            self._most_lent = max(self._most_lent, self._size - len(self._free))
            return element

    def give_back(self, element: Element) -> None:
        """Return `element`, obtained from `take`, to the pool. Raises RuntimeError if no element is in use."""
        with self._changed:
            if len(self._free) == self._size:
                raise RuntimeError(
                    f"give_back called with all {self._size} elements free: an element was returned twice"
                )
            self._free.append(element)
            self._changed.notify()

    def abort(self) -> None:
        """Raise `Cancelled` in all waiting and later calls of `take`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def statistics(self) -> PoolStatistics:
        """Return the usage so far."""
        with self._changed:
            return PoolStatistics(self._size, self._size - len(self._free), self._most_lent, self._waited)
