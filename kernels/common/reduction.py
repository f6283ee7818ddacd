"""Sum of gradient lanes, with the squares for the global norm, in one streaming pass over chunks.

A chunk is the unit of work and of rounding: its bits do not depend on the thread, so threads may divide the chunks of
an arena in any way.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import Floats, jit_kernel

CHUNK = 65536
"""Elements per chunk: 256 KiB per lane."""

_BLOCK = 4096  # elements summed over all lanes before the next ones, so that the sum stays in the L1 cache


@jit_kernel
def _add(total: Floats, term: Floats) -> None:
    for i in range(total.shape[0]):
        total[i] += term[i]


@jit_kernel
def _copy(target: Floats, source: Floats) -> None:
    for i in range(target.shape[0]):
        target[i] = source[i]


@jit_kernel
def _sum_of_squares(values: Floats) -> float:
    total = 0.0
    for i in range(values.shape[0]):
        value = np.float64(values[i])
        total += value * value
    return total


@jit_kernel
def sum_lanes(lanes: Floats, out: Floats, partials: NDArray[np.float64], first_chunk: int, last_chunk: int) -> None:
    """Sum the lanes, in their order, for the chunks ``first_chunk .. last_chunk - 1``.

    `lanes` is (lanes, N), `out` (N,); `out` may be ``lanes[0]`` itself. The sum of squares of chunk c of `out`, in
    float64, is written to ``partials[c]``; `partials` is (ceil(N / CHUNK),).
    """
    in_place = lanes[0].ctypes.data == out.ctypes.data
    for chunk in range(first_chunk, last_chunk):
        stop = min((chunk + 1) * CHUNK, out.shape[0])
        squares = 0.0
        for begin in range(chunk * CHUNK, stop, _BLOCK):
            end = min(begin + _BLOCK, stop)
            block = out[begin:end]
            if not in_place:
                _copy(block, lanes[0, begin:end])
            for lane in range(1, lanes.shape[0]):
                _add(block, lanes[lane, begin:end])
            squares += _sum_of_squares(block)
        partials[chunk] = squares
