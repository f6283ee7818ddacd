"""LLL reduction of Gram matrices: float64 on exact integers, exact integers where that is too short, and a certificate.

Of every result it is checked in exact arithmetic that the reduced matrix is T G Tᵀ, and modulo three primes of 25 bits
that det T is ±1. How well it is reduced, δ = 0.99 and η = 0.51, is a matter of quality alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.lattice import DELTA, ETA, LllStatus, lll_gram
from threadloom.stages.config import InputError
from threadloom.stages.lattice.certificate import is_unimodular, products_equal
from threadloom.stages.lattice.exact_lll import ExactReduction, NotPositiveDefinite

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]

GRAM_BITS = 36
"""Bits of the largest element of a real Gram matrix as integers."""
EXACT_ROWS = 64
"""Rows up to which a reduction is computed in integers of any size, if float64 is too short."""
_LARGEST = 1 << 61


class LatticeError(InputError):
    """A matrix that is not the Gram matrix of a lattice basis, or numbers beyond the reach of a method."""


@dataclass(frozen=True)
class Reduction:
    """A reduced basis of a lattice."""

    transform: Integers
    """T (n, n), det ±1: its rows are the new vectors, in coordinates of the old ones."""
    gram: Integers
    """T G Tᵀ (n, n)."""
    in_float64: bool
    """False if the coefficients were computed in integers of any size."""


def integer_gram(gram: Doubles, bits: int = GRAM_BITS) -> Integers:
    """Return a real symmetric matrix, scaled so that its largest element is 2**bits, rounded to integers."""
    largest = float(np.abs(gram).max()) if gram.size else 0.0
    if not 0.0 < largest < np.inf:
        raise _not_gram(f"a largest element of {largest:g}")
    rounded = np.rint((gram + gram.T) * (0.5 * 2.0**bits / largest))
    return rounded.astype(np.int64)


def reduce_gram(gram: Integers) -> Reduction:
    """Return the reduction of a symmetric positive definite matrix of integers below 2**61. Raises `LatticeError`."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.size or not np.array_equal(gram, gram.T):
        raise _not_gram(f"a matrix of the shape {gram.shape}, or one that is not symmetric")
    if max(int(gram.max()), -int(gram.min())) >= _LARGEST:
        raise _not_gram("integers of 2**61 or more", hint="scale it with integer_gram")
    n = gram.shape[0]
    reduced, transform = gram.astype(np.int64), np.eye(n, dtype=np.int64)
    scratch = np.zeros((2, n, n))
    status = LllStatus(lll_gram(reduced, transform, scratch[0], scratch[1], DELTA, ETA))
    if status is not LllStatus.REDUCED:
        reduced, transform = _exact(gram, status)
    if not (products_equal((transform, gram, transform.T), reduced) and is_unimodular(transform)):
        raise AssertionError("a reduction that is no change of basis: please report it, with the matrix")
    return Reduction(transform, reduced, status is LllStatus.REDUCED)


def _exact(gram: Integers, status: LllStatus) -> tuple[Integers, Integers]:
    if gram.shape[0] > EXACT_ROWS:
        raise _not_gram(
            f"{gram.shape[0]} rows on which float64 ended with {status.name.lower()}",
            hint=f"add a multiple of the identity to it, or reduce blocks of {EXACT_ROWS} rows, which are then exact",
        )
    exact = ExactReduction(gram.tolist())
    try:
        exact.run()
    except NotPositiveDefinite as error:
        raise _not_gram("one that is not positive definite", hint="add a multiple of the identity to it") from error
    rows = (exact.gram, exact.transform)
    if max(abs(element) for matrix in rows for row in matrix for element in row) >= _LARGEST:
        raise _not_gram("a reduced basis with integers of 2**61 or more", hint="scale it with fewer bits")
    reduced, transform = (np.array(matrix, np.int64) for matrix in rows)
    return reduced, transform


def _not_gram(got: str, hint: str | None = None) -> LatticeError:
    return LatticeError("the Gram matrix of a lattice", "a symmetric, positive definite matrix", got, None, hint)
