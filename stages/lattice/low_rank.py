"""Factors of low rank: W (V, C) as A (V, E) times P (E, C), by several choices of the rows of P.

The error is E[p_v ((w_v − a_v P) h)²] with the metric H = E[h hᵀ] and the frequency p_v of token v. Its least value is
that of the singular value decomposition of √p W H^½ (Eckart and Young, 1936; with H, as in SVD-LLM, arXiv 2403.07378).
The other choices are controls: what lattice reduction of a covariance gives, and rows of it. For a given P the factor A
is that of least squares.
"""

from contextlib import suppress
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.lattice.reduction import Doubles, Integers, LatticeError, integer_gram, reduce_gram

_RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Shares of the mean variance that are added to a covariance, until its inverse can be reduced."""


class Basis(Enum):
    """The choice of the rows of P."""

    PCA = "pca"
    LLL = "lll"
    """The first vectors of the reduced inverse of the covariance of W's rows: short ones point to much variance."""
    ROWS = "rows"
    """The first rows of the covariance of W's rows."""


class LowRank(NamedTuple):
    """Two factors, and the share of the weighted energy of W that their product has."""

    tall: Doubles  # A (V, E)
    wide: Doubles  # P (E, C)
    kept: float


def low_rank(weights: NDArray[np.float32], metric: Doubles, frequency: Doubles, rank: int, basis: Basis) -> LowRank:
    """Return factors of `weights` (V, C) of a rank up to C, for a positive definite metric and frequencies (V,)."""
    vocabulary, channels = weights.shape
    if not 1 <= rank <= min(vocabulary, channels):
        raise LatticeError("the rank", f"from 1 to {min(vocabulary, channels)}, the smaller side", str(rank))
    w = weights.astype(np.float64)
    root, root_inverse = _square_roots(metric)
    weighted = np.sqrt(frequency / frequency.sum())[:, None] * (w @ root)
    if basis is Basis.PCA:
        _, _, right = np.linalg.svd(weighted, full_matrices=False)
        tall, wide = w @ root @ right[:rank].T, right[:rank] @ root_inverse
    else:
        wide = directions(w, frequency, rank, basis)
        tall = np.linalg.lstsq(root @ wide.T, root @ w.T, rcond=None)[0].T
    lost = np.sqrt(frequency / frequency.sum())[:, None] * ((w - tall @ wide) @ root)
    return LowRank(tall, wide, 1.0 - float(np.square(lost).sum() / np.square(weighted).sum()))


def directions(weights: Doubles, frequency: Doubles, rank: int, basis: Basis) -> Doubles:
    """Return rows of P (rank, C), of length 1, by the covariance of the rows of `weights` (V, C) with frequencies (V,).

    Not for `Basis.PCA`.
    """
    covariance = (weights * (frequency / frequency.sum())[:, None]).T @ weights
    if basis is Basis.ROWS:
        rows = covariance[:rank]
    else:
        rows = _short_in_inverse(covariance)[:rank].astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: Doubles = rows / np.where(lengths > 0.0, lengths, 1.0)
    return result


def _short_in_inverse(covariance: Doubles) -> Integers:
    """Return the reduced basis of the inverse of a covariance, with a ridge that 64 bits can hold the reduction with.

    The covariance of fewer rows than channels has no inverse: its reduction is a search for integer relations.
    """
    mean = np.trace(covariance) / len(covariance)
    inverses = (np.linalg.inv(covariance + share * mean * np.eye(len(covariance))) for share in _RIDGES)
    for inverse in inverses:
        with suppress(LatticeError):
            return reduce_gram(integer_gram(inverse)).transform
    raise LatticeError("the covariance of the rows", "finite numbers that are not all 0", "others")


def _square_roots(metric: Doubles) -> tuple[Doubles, Doubles]:
    """Return the symmetric square root of a metric and its inverse."""
    values, vectors = np.linalg.eigh(metric)
    if not values[0] > 0.0:
        raise LatticeError("the metric", "a positive definite matrix", f"an eigenvalue of {values[0]:g}")
    roots = np.sqrt(values)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
