"""The shortest vector of a lattice and the lattice point nearest to another point (SVP and CVP).

Up to `EXACT_DIMENSIONS` they are found by enumeration of a reduced basis; above, LLL's first vector and Babai's nearest
plane are approximations.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.lattice import enumerate_nearest, nearest_planes
from threadloom.stages.lattice.reduction import Doubles, Integers, Reduction, integer_gram, reduce_gram

EXACT_DIMENSIONS = 40
NODES = 50_000_000
"""Nodes of the tree after which an enumeration ends with the best point so far: seconds."""


class FoundVector(NamedTuple):
    """A lattice point in coordinates of the basis, z (n,)."""

    coordinates: Integers
    distance: float
    """Squared distance to the target in the metric, (t − z) G (t − z)ᵀ; of a shortest vector, its squared length."""
    exact: bool
    """True if the whole tree was searched: no other point is nearer, up to the rounding of float64."""


class _ReducedBasis(NamedTuple):
    reduction: Reduction
    ratios: Doubles  # (n, n) r_ij / r_ii
    squares: Doubles  # (n,) r_ii²


def shortest_vector(gram: Doubles, nodes: int = NODES) -> FoundVector:
    """Return the shortest vector other than 0 of the lattice with a Gram matrix (n, n). Raises `LatticeError`."""
    basis, n = _reduced(gram), len(gram)
    best = np.zeros(n)
    lengths = np.diag(gram_in_basis(gram, basis.reduction.transform))
    best[np.argmin(lengths)] = 1.0
    if n > EXACT_DIMENSIONS:
        return _found(gram, basis, best, np.zeros(n), exact=False)
    scratch, bound = np.zeros((4, n + 1)), float(lengths.min()) * (1.0 - 1e-12)
    _, left = enumerate_nearest(basis.ratios, basis.squares, np.zeros(n), best, bound, True, nodes, scratch)
    return _found(gram, basis, best, np.zeros(n), exact=left > 0)


def nearest_vector(gram: Doubles, target: Doubles, nodes: int = NODES) -> FoundVector:
    """Return the lattice point nearest to `target` (n,), in coordinates of the basis with a Gram matrix (n, n)."""
    basis, n = _reduced(gram), len(gram)
    within = in_basis(gram, basis.reduction.transform, target[None])[0]
    if n > EXACT_DIMENSIONS:
        rest, out = within[None], np.zeros((1, n), np.int64)
        nearest_planes(rest, basis.ratios, out)
        return _found(gram, basis, out[0].astype(np.float64), target, exact=False)
    best, scratch = np.zeros(n), np.zeros((4, n + 1))
    _, left = enumerate_nearest(basis.ratios, basis.squares, within, best, np.inf, False, nodes, scratch)
    return _found(gram, basis, best, target, exact=left > 0)


def planes_of(gram: Doubles) -> tuple[Doubles, Doubles]:
    """Return r_ij / r_ii (n, n) and r_ii² (n,) of the upper triangular factor of a Gram matrix."""
    upper = np.linalg.cholesky(gram).T
    diagonal = np.diag(upper)
    return np.ascontiguousarray(upper / diagonal[:, None]), diagonal**2


def in_basis(gram: Doubles, transform: Integers, points: Doubles) -> Doubles:
    """Return the coordinates (V, n) of points, given in the old coordinates, in a new basis T.

    They solve y T = x. The elements of T⁻¹ may be large even if T is reduced, so y solves (T G Tᵀ) yᵀ = T G xᵀ, whose
    errors are small in the metric G.
    """
    t = transform.astype(np.float64)
    result: Doubles = np.ascontiguousarray(np.linalg.solve(gram_in_basis(gram, transform), t @ gram @ points.T).T)
    return result


def _reduced(gram: Doubles) -> _ReducedBasis:
    reduction = reduce_gram(integer_gram(gram))
    return _ReducedBasis(reduction, *planes_of(gram_in_basis(gram, reduction.transform)))


def gram_in_basis(gram: Doubles, transform: Integers) -> Doubles:
    """Return the Gram matrix T G Tᵀ of a basis with the vectors T as rows."""
    t = transform.astype(np.float64)
    result: NDArray[np.float64] = t @ gram @ t.T
    return result


def _found(gram: Doubles, basis: _ReducedBasis, best: Doubles, target: Doubles, *, exact: bool) -> FoundVector:
    coordinates = best.astype(np.int64) @ basis.reduction.transform
    away = target - coordinates
    return FoundVector(coordinates, float(away @ gram @ away), exact)
