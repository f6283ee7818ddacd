"""Passes over arrays that are bound by memory bandwidth, as work for `throughput`.

Every function takes the size of all its arrays together, in bytes. Bytes read and written are counted as in STREAM,
without the read of a cache line before it is written.
"""

from functools import partial

import numpy as np

from threadloom.stages.machine.timing import Work

_FLOAT = np.dtype(np.float32).itemsize


def stream_add(size: int) -> Work:
    """Return the sum of two float32 arrays, written to a third."""
    count = max(size // (3 * _FLOAT), 1)
    a, b, c = np.ones(count, np.float32), np.ones(count, np.float32), np.zeros(count, np.float32)
    return partial(np.add, a, b, out=c), 3.0 * a.nbytes


def stream_copy(size: int) -> Work:
    """Return the copy of a float32 array."""
    count = max(size // (2 * _FLOAT), 1)
    a, b = np.ones(count, np.float32), np.zeros(count, np.float32)
    return partial(np.copyto, b, a), 2.0 * a.nbytes


def stream_add_in_place(size: int) -> Work:
    """Return the sum of two float32 arrays, written to the first: the written lines are already in the cache."""
    count = max(size // (2 * _FLOAT), 1)
    a, b = np.ones(count, np.float32), np.zeros(count, np.float32)
    return partial(np.add, a, b, out=a), 3.0 * a.nbytes


def stream_negate(size: int) -> Work:
    """Return the change of sign of a float32 array in place: only the written lines are read."""
    count = max(size // _FLOAT, 1)
    a = np.ones(count, np.float32)
    return partial(np.negative, a, out=a), 2.0 * a.nbytes
