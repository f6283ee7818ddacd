"""One aligned allocation with named views in it.

Guarantees: every view starts on a 64-byte boundary (a cache line, and the widest vector register); views never overlap;
the padding between them is initially zero; nothing is allocated after construction. Two arenas with the same table of
shapes have the same layout, so an operation on whole arenas needs only their `flat` arrays.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ALIGNMENT = 64
"""Alignment of views, in bytes."""

Shape = tuple[int, ...]


def aligned_zeros(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return a zeroed one-dimensional array of `count` elements aligned to 64 bytes."""
    kind = np.dtype(dtype)
    raw = np.zeros(count * kind.itemsize + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * kind.itemsize].view(kind)


def arena_size(shapes: Mapping[str, Shape], dtype: DTypeLike = np.float32) -> int:
    """Return the number of elements of an arena with these shapes, padding included."""
    return _layout(shapes, np.dtype(dtype))[1]


def _layout(shapes: Mapping[str, Shape], kind: np.dtype[Any]) -> tuple[dict[str, int], int]:
    """Return the offset of each view and the total size, both in elements."""
    step = ALIGNMENT // kind.itemsize
    offsets: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        if any(size < 0 for size in shape):
            raise ValueError(f"arena view {name!r}: expected non-negative sizes, got shape {shape}")
        offsets[name] = end
        end += -(-prod(shape) // step) * step
    return offsets, end


class Arena(Mapping[str, NDArray[Any]]):
    """A mapping of name → array in which all arrays share one allocation.

    `flat` is the whole allocation as a one-dimensional array, padding included; `offset(name)` is the index of a view
    in it.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], dtype: DTypeLike = np.float32, buffer: NDArray[Any] | None = None
    ) -> None:
        """Lay out `shapes` in a new zeroed allocation, or in `buffer`: 1-D, 64-byte aligned, `arena_size` elements.

        Raises ValueError if `buffer` does not fit, or if the element size does not divide 64 bytes.
        """
        kind = np.dtype(dtype)
        if ALIGNMENT % kind.itemsize:
            raise ValueError(
                f"expected a dtype whose size divides {ALIGNMENT} bytes, got {kind} ({kind.itemsize} bytes)"
            )
        self._offsets, size = _layout(shapes, kind)
        self.flat: NDArray[Any] = aligned_zeros(size, kind) if buffer is None else buffer
        misaligned = size and self.flat.ctypes.data % ALIGNMENT
        if self.flat.shape != (size,) or self.flat.dtype != kind or misaligned:
            raise ValueError(
                f"expected a 1-D {kind} buffer of {size} elements aligned to {ALIGNMENT} bytes, "
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
        """Return the index in `flat` of the first element of view `name`."""
        return self._offsets[name]

    @property
    def nbytes(self) -> int:
        """Size of the allocation in bytes, padding included."""
        return self.flat.nbytes
