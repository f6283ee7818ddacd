"""Gradient lanes: arenas in which the gradients of a batch's micro-batches are summed, each in one fixed order.

Micro-batch m of every batch belongs to lane m mod n. A lane is written by one thread at a time, micro-batches in
ascending order, so the sum in it has one order of additions however many threads there are; the reducer then adds the
lanes, in order. The first micro-batch of a batch overwrites what the lane held, so lanes are never zeroed.

Ownership: lane l belongs to the worker that holds one of its micro-batches (admission `LaneOrder`); after a batch's
last micro-batch it belongs to the reducer until `mark_reduced`.
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
    """Which lane sums which micro-batch, and in which order."""

    lanes: int
    micro_batches: int
    """Micro-batches of one batch."""

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= self.micro_batches:
            raise ValueError(
                f"{self.micro_batches} micro-batches a batch allow 1 to {self.micro_batches} lanes, got {self.lanes}: "
                "an unused lane would add stale gradients; use fewer lanes or smaller micro-batches"
            )

    def lane_of(self, micro: int) -> int:
        """Return the lane that sums micro-batch `micro` of any batch."""
        return micro % self.lanes

    def starts_lane(self, micro: int) -> bool:
        """Say whether `micro` is the first of its lane in a batch, which overwrites instead of adding."""
        return micro < self.lanes


class MonotonicCounter:
    """A counter that only grows, and that threads can wait for."""

    def __init__(self, reached: int) -> None:
        self._reached = reached  # only advance() changes it
        self._changed = threading.Condition()
        self._aborted = False

    def advance(self, value: int) -> None:
        """Raise the counter to `value` and wake who waited for it."""
        with self._changed:
            self._reached = max(self._reached, value)
            self._changed.notify_all()

    def wait_for(self, value: int) -> None:
        """Wait until the counter has reached `value`; raises `Cancelled` on abort."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._reached >= value)
            if self._aborted:
                raise Cancelled

    def abort(self) -> None:
        """Wake everyone who waits with `Cancelled`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()


class Lanes:
    """The lanes' memory: one allocation of shape (lanes, elements of an arena), and an arena over each row."""

    def __init__(self, shapes: Mapping[str, Shape], plan: LanePlan, first_batch: int = 0) -> None:
        size = arena_size(shapes)
        self.plan = plan
        self.flat: NDArray[Any] = aligned_zeros(plan.lanes * size, np.float32).reshape(plan.lanes, size)
        self.arenas = tuple(Arena(shapes, np.float32, row) for row in self.flat)
        self._reduced = MonotonicCounter(first_batch)

    def wait_writable(self, batch: int) -> None:
        """Wait until the reducer has read every batch before `batch`, so that its gradients may be written."""
        self._reduced.wait_for(batch)

    def mark_reduced(self, batch: int) -> None:
        """Say that the lanes of `batch` have been summed elsewhere and may be written over."""
        self._reduced.advance(batch + 1)

    def abort(self) -> None:
        """Wake everyone who waits with `Cancelled`."""
        self._reduced.abort()

    @property
    def nbytes(self) -> int:
        """Bytes of all lanes."""
        return self.flat.nbytes
