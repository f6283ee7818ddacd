"""Gradient lanes: buffers that each sum the gradients of some micro-batches of a batch, in one fixed order.

With n lanes, micro-batch m of every batch belongs to lane m mod n. One thread at a time writes a lane, micro-batches in
ascending order, so the order of additions does not depend on the number of threads; the reducer then adds the lanes in
order. The first micro-batch of a batch overwrites its lane, so lanes need no zeroing.

Ownership: lane l belongs to the worker that holds one of its micro-batches (admission `LaneOrder`); after the last
micro-batch of a batch it belongs to the reducer until `mark_reduced`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline.core.arena import Arena, Shape, aligned_zeros, arena_size
from threadloom.pipeline.core.errors import Cancelled


@dataclass(frozen=True)
class LanePlan:
    """The assignment of micro-batches to lanes."""

    lanes: int
    micro_batches: int
    """Micro-batches per batch."""

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= self.micro_batches:
            raise ValueError(
                f"expected 1 to {self.micro_batches} lanes for {self.micro_batches} micro-batches per batch, got "
                f"{self.lanes}: an unused lane would contribute stale gradients; use fewer lanes or smaller "
                f"micro-batches"
            )

    def lane_of(self, micro: int) -> int:
        """Return the lane that sums micro-batch `micro` of any batch."""
        return micro % self.lanes

    def starts_lane(self, micro: int) -> bool:
        """Return True if `micro` is the first micro-batch of its lane, which overwrites the lane."""
        return micro < self.lanes


class MonotonicCounter:
    """A counter that only increases, and that threads can wait for."""

    def __init__(self, reached: int) -> None:
        self._reached = reached  # changed only by advance()
        self._changed = threading.Condition()
        self._aborted = False

    def advance(self, value: int) -> None:
        """Increase the counter to `value` unless it is larger, and wake the waiters."""
        with self._changed:
            self._reached = max(self._reached, value)
            self._changed.notify_all()

    @property
    def reached(self) -> int:
        """The value of the counter."""
        return self._reached

    def wait_for(self, value: int, seconds: float | None = None) -> bool:
        """Wait until the counter is at least `value`, at most `seconds`; return True if it is.

        Raises `Cancelled` on abort.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._reached >= value, seconds)
            if self._aborted:
                raise Cancelled
            return self._reached >= value

    def abort(self) -> None:
        """Raise `Cancelled` in all waiting threads, and in later calls that would wait."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()


class Lanes:
    """The memory of all lanes: one float32 array of shape (lanes, arena size), and an arena over each row."""

    def __init__(self, shapes: Mapping[str, Shape], plan: LanePlan, first_batch: int = 0) -> None:
        size = arena_size(shapes)
        self.plan = plan
        self.flat: NDArray[Any] = aligned_zeros(plan.lanes * size, np.float32).reshape(plan.lanes, size)
        self.arenas = tuple(Arena(shapes, np.float32, row) for row in self.flat)
        self._reduced = MonotonicCounter(first_batch)

    def wait_writable(self, batch: int) -> None:
        """Wait until the reducer has summed all batches before `batch`. Raises `Cancelled` on abort."""
        self._reduced.wait_for(batch)

    def mark_reduced(self, batch: int) -> None:
        """Declare that the lanes of `batch` have been summed and may be overwritten."""
        self._reduced.advance(batch + 1)

    def abort(self) -> None:
        """Raise `Cancelled` in all waiting threads, and in later calls that would wait."""
        self._reduced.abort()

    @property
    def nbytes(self) -> int:
        """Size of all lanes in bytes."""
        return self.flat.nbytes
