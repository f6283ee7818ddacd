"""Babai's nearest plane (1986): the nearest lattice point, coordinate by coordinate, of many points at once."""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import jit_kernel

Doubles = NDArray[np.float64]


@jit_kernel
def nearest_planes(points: Doubles, ratios: Doubles, out: NDArray[np.int64]) -> None:
    """Write to `out` (V, n) the integer coordinates of lattice points near `points` (V, n), in coordinates of a basis.

    Row i of `ratios` (n, n) has r_ij / r_ii of the upper triangular factor R of the basis (its columns are the vectors)
    right of the diagonal. From the last coordinate to the first, the nearest plane of the lattice is chosen. `points`
    must be below 2**52, and are overwritten with what remains of them: points minus `out`.
    """
    n = points.shape[1]
    for row in range(points.shape[0]):
        rest = points[row]
        for i in range(n - 1, -1, -1):
            centre = rest[i]
            for j in range(i + 1, n):
                centre += ratios[i, j] * rest[j]
            whole = np.rint(centre)
            out[row, i] = np.int64(whole)
            rest[i] -= whole
