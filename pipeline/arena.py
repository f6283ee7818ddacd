"""One aligned allocation with named views in it.

Guarantees: every view starts on a 64-byte boundary (a cache line, and the widest vector register), the views never
overlap, the padding between them is zero when the arena is made, and nothing is allocated after that. Two arenas made
from the same table have the same layout, so an operation on whole arenas needs only their flat forms.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ALIGNMENT = 64
"""Bytes between the boundaries on which views start."""

Shape = tuple[int, ...]


def aligned_zeros(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return a zeroed one-dimensional array of `count` elements whose first byte lies on a 64-byte boundary."""
    kind = np.dtype(dtype)
    raw = np.zeros(count * kind.itemsize + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * kind.itemsize].view(kind)


class Arena(Mapping[str, NDArray[Any]]):
    """A mapping of name → array in which all arrays share one allocation.

    `flat` is the whole allocation as one dimension, padding included; `offset(name)` is where a view begins in it.
    """

    def __init__(self, shapes: Mapping[str, Shape], dtype: DTypeLike = np.float32) -> None:
        kind = np.dtype(dtype)
        if ALIGNMENT % kind.itemsize:
            raise ValueError(f"an arena needs an element size that divides {ALIGNMENT} bytes, not {kind} ({kind.itemsize})")
        step = ALIGNMENT // kind.itemsize
        self._offsets: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            if any(size < 0 for size in shape):
                raise ValueError(f"arena view {name!r} needs sizes of at least 0, got shape {shape}")
            self._offsets[name] = end
            end += -(-prod(shape) // step) * step
        self.flat: NDArray[Any] = aligned_zeros(end, kind)
        self._views = {
            name: self.flat[start : start + prod(shapes[name])].reshape(shapes[name])
            for name, start in self._offsets.items()
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def offset(self, name: str) -> int:
        """Return the index in `flat` at which the view `name` begins."""
        return self._offsets[name]

    @property
    def nbytes(self) -> int:
        """Bytes of the allocation, padding between views included."""
        return self.flat.nbytes
