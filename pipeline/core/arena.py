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


def arena_size(shapes: Mapping[str, Shape], dtype: DTypeLike = np.float32) -> int:
    """Return how many elements an arena of this table has, padding included."""
    return _layout(shapes, np.dtype(dtype))[1]


def _layout(shapes: Mapping[str, Shape], kind: np.dtype[Any]) -> tuple[dict[str, int], int]:
    """Return where each view begins, and where the last one ends, in elements."""
    step = ALIGNMENT // kind.itemsize
    offsets: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        if any(size < 0 for size in shape):
            raise ValueError(f"arena view {name!r} needs sizes of at least 0, got shape {shape}")
        offsets[name] = end
        end += -(-prod(shape) // step) * step
    return offsets, end


class Arena(Mapping[str, NDArray[Any]]):
    """A mapping of name → array in which all arrays share one allocation.

    `flat` is the whole allocation as one dimension, padding included; `offset(name)` is where a view begins in it.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], dtype: DTypeLike = np.float32, buffer: NDArray[Any] | None = None
    ) -> None:
        """Lay `shapes` out in a new allocation of zeros, or in `buffer`: flat, aligned, of `arena_size` elements."""
        kind = np.dtype(dtype)
        if ALIGNMENT % kind.itemsize:
            raise ValueError(
                f"an arena needs an element size that divides {ALIGNMENT} bytes, not {kind} ({kind.itemsize})"
            )
        self._offsets, size = _layout(shapes, kind)
        self.flat: NDArray[Any] = aligned_zeros(size, kind) if buffer is None else buffer
        misaligned = size and self.flat.ctypes.data % ALIGNMENT
        if self.flat.shape != (size,) or self.flat.dtype != kind or misaligned:
            raise ValueError(
                f"an arena of this table needs a flat {kind} buffer of {size} elements on a {ALIGNMENT}-byte boundary, "
                f"got shape {self.flat.shape} of {self.flat.dtype} at {self.flat.ctypes.data:#x}"
            )
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
