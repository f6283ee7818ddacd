"""A fixed pool of pre-allocated things, lent and given back.

Guarantees: the pool never makes a new element, so what is in flight has a bound; an element is lent to one holder at a
time; an abort wakes everyone who waits. Assumption: who takes an element gives that same element back once. A pool
whose holders pass elements along a pipeline must hand them out in the order of the items they serve (one stage with one
worker), or a late item could hold what an early one needs.
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
    """How a pool was used."""

    size: int
    """Elements the pool was made with."""
    lent: int
    """Elements in use now."""
    most_lent: int
    """Largest number ever in use at once: below `size`, the pool was larger than needed."""
    waited: float
    """Seconds that takers spent waiting: large, and the pool is what limits the pipeline."""


class Pool(Generic[Element]):
    """Lends its elements one by one; `take` blocks while none is free."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._elements = tuple(elements)
        self._free = deque(self._elements)  # only take() and give_back() change it, under the condition's lock
        self._size = len(self._free)
        if not self._size:
            raise ValueError("a pool needs at least one element, got none; every taker would wait for ever")
        self._changed = threading.Condition()
        self._aborted = False
        self._most_lent = 0
        self._waited = 0.0

    def total(self, size: Callable[[Element], int]) -> int:
        """Return the sum of a size over all elements, lent or not."""
        return sum(map(size, self._elements))

    def take(self) -> Element:
        """Return a free element, waiting for one; raises `Cancelled` once the pool is aborted."""
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
        """Return an element that `take` lent."""
        with self._changed:
            if len(self._free) == self._size:
                raise RuntimeError(f"a pool of {self._size} got back more than it lent: an element was returned twice")
            self._free.append(element)
            self._changed.notify()

    def abort(self) -> None:
        """Wake every waiting taker with `Cancelled`; later takers get it too."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def statistics(self) -> PoolStatistics:
        """Return how the pool has been used so far."""
        with self._changed:
            return PoolStatistics(self._size, self._size - len(self._free), self._most_lent, self._waited)
