"""Exact checks of integer matrices, by residues.

Integers that are equal modulo several primes are equal if the product of the primes exceeds twice their size. Residues
are below 2**25, so that sums of up to 2**13 of their products fit into 64 bits.
"""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_PRIMES = (33554393, 33554383, 33554371, 33554347, 33554341, 33554317, 33554291, 33554273, 33554267, 33554249)
"""Largest primes below 2**25."""
_LIMIT = 1 << 13


def products_equal(factors: tuple[Integers, ...], product: Integers) -> bool:
    """Return True if the product of square matrices of one size is `product`, exactly."""
    size = product.shape[0]
    if size > _LIMIT:
        raise ValueError(f"matrices of at most {_LIMIT} rows, got {size}")
    largest = _largest(product)
    bound = size ** (len(factors) - 1)
    for factor in factors:
        bound *= _largest(factor)
    modulus = 1
    for prime in _PRIMES:
        found = factors[0] % prime
        for factor in factors[1:]:
            found = found @ (factor % prime) % prime
        if not np.array_equal(found, product % prime):
            return False
        modulus *= prime
        if modulus > 2 * max(bound, largest):
            return True
    raise ValueError("the integers are too large for the check")


def is_unimodular(matrix: Integers) -> bool:
    """Return True if the determinant of a square matrix is 1 or −1, modulo three primes."""
    found = {_determinant(matrix, prime) for prime in _PRIMES[:3]}
    return found in ({1}, {-1})


def _determinant(matrix: Integers, prime: int) -> int:
    """Return the determinant modulo a prime, from −prime / 2 to prime / 2, by elimination."""
    rows, result = matrix % prime, 1
    for i in range(len(rows)):
        pivot = i + int(np.argmax(rows[i:, i] != 0))
        if rows[pivot, i] == 0:
            return 0
        if pivot != i:
            rows[[i, pivot]] = rows[[pivot, i]]
            result = -result
        result = result * int(rows[i, i]) % prime
        factors = rows[i + 1 :, i] * pow(int(rows[i, i]), -1, prime) % prime
        rows[i + 1 :, i:] = (rows[i + 1 :, i:] - factors[:, None] * rows[i, i:]) % prime
    return result if 2 * result < prime else result - prime


def _largest(matrix: Integers) -> int:
    return max(int(matrix.max()), -int(matrix.min()))
