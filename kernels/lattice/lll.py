"""LLL reduction of an integer Gram matrix (Lenstra, Lenstra and Lovász, 1982) in the form of Nguyen and Stehlé (2009).

The Gram matrix and the transform are integers and stay exact; the Gram-Schmidt coefficients are float64,
computed from the exact matrix again and again, so that their errors do not accumulate:

    r_kj = g_kj − Σ_i<j μ_ji r_ki,   μ_kj = r_kj / r_jj,   |μ_kj| ≤ η,   δ r_jj ≤ s_j

where s_j is the squared length of the part of vector k that is orthogonal to the first j. The last condition is that
of a swap of vectors j and k; vector k moves as far as it fails at once. A multiple that may overflow 64 bits, or
coefficients that do not become small, end the reduction with a status: then the caller computes exactly.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import jit_strict_fp

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]

DELTA, ETA = 0.99, 0.51
_LARGEST = 2.0**62
_ROUNDS = 60
"""Repetitions of a size reduction after which float64 is considered too short."""
_SMALLEST = 2.0**-44
"""Least share of a vector's squared length that its orthogonal part has, to be known in float64."""


class LllStatus(IntEnum):
    """The end of a reduction in float64."""

    REDUCED = 0
    OVERFLOW = 1  # an integer may exceed 64 bits
    PRECISION = 2  # float64 is too short, or the matrix is not positive definite


@jit_strict_fp
def _coefficients(gram: Integers, k: int, r: Doubles, mu: Doubles) -> float:
    """Compute row k of r and μ left of the diagonal; return the largest |μ|."""
    largest = 0.0
    for j in range(k):
        total = np.float64(gram[k, j])
        for i in range(j):
            total -= mu[j, i] * r[k, i]
        r[k, j] = total
        mu[k, j] = total / r[j, j]
        largest = max(largest, abs(mu[k, j]))
    return largest


@jit_strict_fp
def _fits(target: Integers, source: Integers, factor: float) -> bool:
    """Return True if ``target - factor * source`` fits into 64 bits, element by element; all are below 2**62."""
    for i in range(target.shape[0]):
        if abs(np.float64(target[i])) + abs(factor) * abs(np.float64(source[i])) >= _LARGEST:
            return False
    return True


@jit_strict_fp
def _subtract(gram: Integers, transform: Integers, k: int, j: int, factor: float) -> bool:
    """Subtract `factor` times vector j from vector k; return False if that may overflow, and then change nothing."""
    square = abs(factor) * abs(factor) * np.float64(gram[j, j]) + 2 * abs(factor) * abs(np.float64(gram[k, j]))
    if not (
        square + np.float64(gram[k, k]) < _LARGEST
        and _fits(gram[k], gram[j], factor)
        and _fits(transform[k], transform[j], factor)
    ):
        return False
    x = np.int64(factor)
    own = gram[k, k] - 2 * x * gram[k, j] + x * x * gram[j, j]
    for i in range(gram.shape[0]):
        gram[k, i] -= x * gram[j, i]
        gram[i, k] = gram[k, i]
        transform[k, i] -= x * transform[j, i]
    gram[k, k] = own
    return True


@jit_strict_fp
def _size_reduce(gram: Integers, transform: Integers, k: int, r: Doubles, mu: Doubles, eta: float) -> int:
    """Reduce vector k by those before it until all |μ| ≤ η."""
    for _ in range(_ROUNDS):
        if _coefficients(gram, k, r, mu) <= eta:
            return 0
        for j in range(k - 1, -1, -1):
            factor = np.rint(mu[k, j])
            if factor != 0.0:
                if not _subtract(gram, transform, k, j, factor):
                    return 1
                for i in range(j):
                    mu[k, i] -= factor * mu[j, i]
    return 2


@jit_strict_fp
def _move_row(matrix: Integers, k: int, to: int) -> None:
    """Move row k to an earlier place, and those between one place on."""
    for i in range(matrix.shape[1]):
        moved = matrix[k, i]
        for j in range(k, to, -1):
            matrix[j, i] = matrix[j - 1, i]
        matrix[to, i] = moved


@jit_strict_fp
def lll_gram(gram: Integers, transform: Integers, r: Doubles, mu: Doubles, delta: float, eta: float) -> int:
    """Reduce a symmetric positive definite matrix of integers below 2**62 in place; return an `LllStatus`.

    All arrays are (n, n). `transform` T begins as the identity; whatever the status is, ``T @ G @ T.T`` with the first
    matrix G is the last one, and det T = ±1. Rows of T are the new vectors.
    `r` and `mu` are scratch; after `REDUCED` they hold, on and below the diagonal, the coefficients of the last matrix.
    """
    n, k = gram.shape[0], 1
    r[0, 0] = np.float64(gram[0, 0])
    if not r[0, 0] > 0.0:
        return 2
    while k < n:
        status = _size_reduce(gram, transform, k, r, mu, eta)
        if status != 0:
            return status
        rest = np.float64(gram[k, k])
        for j in range(k):
            mu[j, k] = rest  # s_j, above the diagonal
            rest -= mu[k, j] * r[k, j]
        if not rest > _SMALLEST * np.float64(gram[k, k]):
            return 2
        mu[k, k], place = rest, k
        while place > 0 and delta * r[place - 1, place - 1] > mu[place - 1, k]:
            place -= 1
        left = mu[place, k]
        if place < k:
            for j in range(place):
                r[place, j], mu[place, j] = r[k, j], mu[k, j]
            _move_row(gram, k, place)
            _move_row(gram.T, k, place)
            _move_row(transform, k, place)
        r[place, place] = left
        k = place + 1
    return 0
