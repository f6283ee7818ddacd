"""Nearest lattice points block by block: exact within a block of coordinates, as Babai's nearest plane from one to the
next. With one block it is the exact nearest point, with blocks of one coordinate it is Babai's.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import jit_strict_fp
from threadloom.kernels.lattice.enumeration import enumerate_nearest

Doubles = NDArray[np.float64]


@jit_strict_fp
def nearest_in_blocks(
    points: Doubles, ratios: Doubles, squares: Doubles, block: int, nodes: int, out: NDArray[np.int64], scratch: Doubles
) -> int:
    """Write to `out` (V, n) the integer coordinates of lattice points near `points` (V, n), as `nearest_planes`.

    `ratios` (n, n) and `squares` (n,) are r_ij / r_ii and r_ii² of the upper triangular factor of the basis. Up to
    `block` coordinates are searched at a time, the last ones first, in at most `nodes` nodes of a tree (at least
    2 `block`, by which Babai's point is found). `points` are overwritten with what remains of them; `scratch` is
    (block, block + 1) + (6, block + 1), one after the other. Returns how many searches were not finished.
    """
    n, unfinished = points.shape[1], 0
    within, rest_of = scratch[:block], scratch[block:]
    for row in range(points.shape[0]):
        rest, last = points[row], n
        while last > 0:
            first = max(last - block, 0)
            size = last - first
            target, best = rest_of[4], rest_of[5]
            for i in range(size - 1, -1, -1):  # the point, projected on the block, in its coordinates
                moved = 0.0
                for j in range(last, n):
                    moved += ratios[first + i, j] * rest[j]
                for j in range(i + 1, size):
                    within[i, j] = ratios[first + i, first + j]
                    moved -= within[i, j] * (target[j] - rest[first + j])
                target[i] = rest[first + i] + moved
            _, left = enumerate_nearest(
                within[:size, :size], squares[first:last], target[:size], best[:size], np.inf, False, nodes,
                rest_of[:4, : size + 1],
            )  # fmt: skip
            unfinished += left == 0
            for i in range(size):
                out[row, first + i] = np.int64(best[i])
                rest[first + i] -= best[i]
            last = first
    return unfinished
