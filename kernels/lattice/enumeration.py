"""Exact nearest and shortest vectors by enumeration in the order of Schnorr and Euchner (1994; Agrell et al., 2002).

A tree is searched in which a node at depth n − i fixes the integer coordinates i .. n − 1; children come in the order
of their distance, and a branch ends where it is no nearer than the best leaf. Float64 decides: of two lattice points
whose squared distances differ by less than its rounding errors, either may be found.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import jit_strict_fp

Doubles = NDArray[np.float64]


@jit_strict_fp
def enumerate_nearest(
    ratios: Doubles, squares: Doubles, target: Doubles, best: Doubles, bound: float, nonzero: bool, nodes: int,
    scratch: Doubles,
) -> tuple[float, int]:  # fmt: skip
    """Find the integer point z with the least Σ_i s_i (t_i − z_i + Σ_j>i ρ_ij (t_j − z_j))², if it is below `bound`.

    `ratios` ρ is (n, n), read right of the diagonal; `squares` s, `target` t and `best` are (n,), `scratch` (4, n + 1).
    With `nonzero` the origin is left out, and `target` must be 0: the shortest vector, of two opposite ones the one
    whose last coordinate that is not 0 is positive. Writes the point to `best` and returns its squared distance and the
    nodes that were not used; if 0 are left, `best` is the nearest one so far. The distance is `bound` if none is below.
    """
    n = target.shape[0]
    z, centre, above, step = scratch[0], scratch[1], scratch[2], scratch[3]
    k = n - 1
    above[n] = 0.0
    centre[k] = target[k]
    z[k] = np.rint(centre[k])
    step[k] = 1.0 if centre[k] >= z[k] else -1.0
    while nodes > 0:
        nodes -= 1
        across = centre[k] - z[k]
        distance = above[k + 1] + squares[k] * across * across
        if distance < bound and k > 0:
            k -= 1
            above[k + 1] = distance
            total = target[k]
            for j in range(k + 1, n):
                total += ratios[k, j] * (target[j] - z[j])
            centre[k] = total
            z[k] = np.rint(total)
            step[k] = 1.0 if total >= z[k] else -1.0
            continue
        if distance < bound and not (nonzero and distance == 0.0):
            bound = distance
            for i in range(n):
                best[i] = z[i]
        elif distance < bound:  # the origin
            z[k] += 1.0
            continue
        k += 1
        if k == n:
            break
        if nonzero and above[k + 1] == 0.0:  # all coordinates after this one are 0: negative ones are mirror images
            z[k] += 1.0
        else:
            z[k] += step[k]
            step[k] = -step[k] - (1.0 if step[k] > 0.0 else -1.0)
    return bound, nodes
