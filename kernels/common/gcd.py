"""The greatest common divisor as a similarity of tokens, and the loss that is made of it, as the plans define them.

``similarity(a, b) = gcd(a, b) / max(a, b)`` of the numbers of two tokens. If the n-th token has the n-th prime number,
two different tokens are coprime, and the similarity says only whether they are the same token. The loss of a pair of an
input and its target is ``-ln(0.7 similarity + 0.3 / (1 + |x_a - x_b|))`` with fixed coordinates x. Numbers and
coordinates are not trained, so it is a constant of the text: no update can lower it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common.cross_entropy import IGNORED_TARGET
from threadloom.kernels.compiling import TokenIds, jit_kernel, jit_strict_fp

Integers = NDArray[np.int64]
Points = NDArray[np.float64]

SAME, NEAR = 0.7, 0.3
"""Weights of the similarity and of the distance in the loss."""


@jit_strict_fp
def gcd_euclid(a: int, b: int) -> int:
    """Return the greatest common divisor of two numbers that are not negative, by Euclid's algorithm."""
    while b:
        a, b = b, a % b
    return a


@jit_strict_fp
def gcd_binary(a: int, b: int) -> int:
    """Return the greatest common divisor of two positive numbers, by subtraction and shifts (Stein, 1967)."""
    shift = 0
    while (a | b) & 1 == 0:
        a, b, shift = a >> 1, b >> 1, shift + 1
    while a & 1 == 0:
        a >>= 1
    while b:
        while b & 1 == 0:
            b >>= 1
        if a > b:
            a, b = b, a
        b -= a
    return a << shift


@jit_strict_fp
def gcd_loss(ids: TokenIds, targets: TokenIds, numbers: Integers, points: Points) -> float:
    """Return the sum of the losses of pairs, without those whose target is `IGNORED_TARGET`.

    `ids` and `targets` (N,) are token ids, `numbers` (V,) the positive numbers of the tokens, `points` (V, 2) their
    coordinates. Ids must be below V: no bound is checked.
    """
    total = 0.0
    for index in range(ids.shape[0]):
        a, b = ids[index], targets[index]
        if b == IGNORED_TARGET:
            continue
        similarity = gcd_euclid(numbers[a], numbers[b]) / max(numbers[a], numbers[b])
        distance = math.hypot(points[a, 0] - points[b, 0], points[a, 1] - points[b, 1])
        total -= math.log(SAME * similarity + NEAR / (1.0 + distance))
    return total


@jit_kernel
def gcd_table(a: Integers, b: Integers, out: Integers, binary: bool) -> None:
    """Write the greatest common divisors of pairs (N,) to `out`, by the binary algorithm or by Euclid's."""
    for index in range(a.shape[0]):
        out[index] = gcd_binary(a[index], b[index]) if binary else gcd_euclid(a[index], b[index])
