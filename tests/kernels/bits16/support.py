"""Support of the tests of low precision: arrays between guard pages, and bfloat16 in plain NumPy.

An array ends (or begins) at a page that may be neither read nor written: one element too far ends the process.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.reference import Array
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.bf16 import prepare_bf16
from threadloom.kernels.simd.features import DotPath, dot_path, low_precision_info
from threadloom.kernels.simd.vector import LANES

POISON = 0x7FAB
"""A NaN in bfloat16."""


def gap_of_matrices(gap: int, *sizes: int) -> int:
    """Return the gap between the rows of the matrices of a product, or 0 if one of them may have a single row.

    A single row is contiguous with any gap. Numba would compile the kernels once more for each mix of layouts, which
    differ in nothing: the kernels read addresses and strides.
    """
    return 0 if 1 in sizes else gap


class Pages:
    """Makes arrays that touch a guard page; the pages live as long as this."""

    def __init__(self, at_end: bool) -> None:
        self._at_end = at_end
        self._maps: list[mmap.mmap] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike, gap: int = 0) -> NDArray[Any]:
        """Return an array full of NaN (of 0xFF bytes if whole numbers); `gap` elements lie between its rows."""
        kind = np.dtype(dtype)
        outer = (*shape[:-1], shape[-1] + gap)
        size = int(np.prod(outer)) * kind.itemsize - gap * kind.itemsize
        page = mmap.PAGESIZE
        length = -(-size // page) * page
        memory = mmap.mmap(-1, length + 2 * page)
        self._maps.append(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (address, address + page + length):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
        offset = page + (length - size if self._at_end else 0)
        raw = np.frombuffer(memory, np.uint8)[offset : offset + size]
        raw[...] = 0xFF
        strides = [kind.itemsize]
        for extent in reversed(outer[1:]):
            strides.insert(0, strides[0] * extent)
        view = np.ndarray(shape, kind, raw, 0, tuple(strides))
        if kind == np.uint16:
            view[...] = POISON
        return view

    def copy(self, values: NDArray[Any], gap: int = 0) -> NDArray[Any]:
        """Return an array with these values."""
        view = self.empty(values.shape, values.dtype, gap)
        view[...] = values
        return view


def nearest(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Return the bfloat16 bits nearest to finite numbers, by comparing the two neighbours: slow and independent."""
    exact = np.asarray(values, np.float64)
    below = (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    above = (below + 1).astype(np.uint16)
    low, high = np.abs(exact - numbers(below)), np.abs(numbers(above) - exact)
    odd = (below & 1).astype(bool)
    return np.where((high < low) | ((high == low) & odd), above, below)


def numbers(bits: NDArray[np.uint16]) -> Array:
    """Return what bfloat16 bits stand for, in float64."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def random_bits(rng: np.random.Generator, *shape: int) -> NDArray[np.uint16]:
    """Return normal random numbers as bfloat16."""
    return nearest(rng.standard_normal(shape).astype(np.float32))


def paths_here() -> list[DotPath]:
    """Return the paths that run here, AMX's emulated where there is none."""
    paths = list(low_precision_info().available)
    if JIT_ENABLED and LANES == 16 and DotPath.AMX not in paths:
        paths.append(DotPath.AMX)
    return paths


@contextmanager
def on_path(path: DotPath) -> Iterator[None]:
    """Take a path, emulated if need be."""
    prepare_bf16()
    with dot_path(path, emulate=True):
        yield
