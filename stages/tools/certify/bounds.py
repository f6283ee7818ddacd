"""A-priori bounds of the error of attention: from the sizes of q, k and v, before anything is computed.

u is the unit roundoff of float32, and ``gamma(m) = m u / (1 - m u)`` bounds the relative error of m roundings (Higham,
2002, "Accuracy and Stability of Numerical Algorithms", lemma 3.1). A dot product of D terms in any order, with or
without fused multiply-adds, is within gamma(D) |q| |k| (equation 3.5); the factor 1 / sqrt(D) adds two roundings:

    |s_ij computed - exact| <= (gamma(D + 2) + product) * |q_i| |k_j| / sqrt(D) = e_ij

where `product` is the error of one product of a format that splits its operands. Two exponentials whose arguments are
off by e_i = max over j of e_ij differ by exp(2 e_i) in their ratio. Exponentials (`EXPONENTIAL` roundings), their sum
(T), its reciprocal and the product with it (2), and the sum of the weighted values (T) are 2T + 2 EXPONENTIAL + 2
roundings. The difference of a score and the largest one, x_j, is rounded too: p_j is off by up to `SHIFT` u x_j. As x_j
<= -ln p_j, the mean of x_j is at most the entropy, ln T (Blanchard, Higham and Higham, 2021, treat the shifted
softmax). A 16-bit format rounds the probabilities and the output once each. So with v = max |v|:

    |o_i computed - exact| <= v (exp(2 e_i) (1 + gamma(2T + 2 EXPONENTIAL + 2)) (1 + SHIFT u ln T)**2 (1 + r)**2 - 1)

plus the numbers that are too small for the format, `tiny` each. It is at most 2v, since both are weighted means of the
values.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from threadloom.stages.config import Precision
from threadloom.stages.tools.certify.balls import Ball, Floats64, ball, flint, magnitude, matrix, rows_of

EXPONENTIAL = 8
"""Roundings that the error of the kernels' exponential is equal to: 7 in float32, fewer than 8 for powers of two."""
SHIFT = 4
"""Roundings of the difference of two scores, in units of that difference."""


@dataclass(frozen=True)
class Format:
    """Errors of one precision."""

    storage: float
    """Unit roundoff of activations; 0 if they are float32."""
    tiny: float
    """Largest absolute error of a rounding to the storage format, of numbers below its normal ones."""
    product: float = 0.0
    """Relative error of one product of a matrix multiply."""
    splits: int = 1
    """Products that a matrix multiply sums for each product of the formula."""


FORMATS = {
    Precision.FLOAT32: Format(0.0, 2.0**-126),
    # x = high + low + rest, with |rest| <= 2**-16 |x| in both operands, and low * low <= 2**-16 is omitted.
    Precision.BF16X3: Format(0.0, 2.0**-126, product=3.1 * 2.0**-16, splits=3),
    Precision.BF16: Format(2.0**-8, 2.0**-126),
    Precision.FP16: Format(2.0**-11, 2.0**-25),
}


def gamma(roundings: int) -> Ball:
    """Return ``m u / (1 - m u)`` of float32."""
    sum_of_units = ball(roundings) * ball(2.0**-24)
    return sum_of_units / (1 - sum_of_units)


def score_bounds(q: Floats64, k: Floats64, kind: Format) -> list[list[Ball]]:
    """Return the bounds e_ij of the scores of one head from finite q and k (T, D), row by row; 0 for masked ones."""
    size = q.shape[1]
    factor = (gamma(kind.splits * size + 2) + ball(kind.product) * 2) * ball(size).rsqrt()
    sizes = rows_of(matrix(np.abs(q)) * matrix(np.abs(k)).transpose())
    lost = ball(size) * ball(2.0**-126)  # products that underflow
    return [
        [number * factor + lost if j <= i else ball(0) for j, number in enumerate(row)] for i, row in enumerate(sizes)
    ]


def _factor(bound: Ball, length: int, kind: Format) -> Ball:
    """Return the largest factor of a probability whose scores are off by `bound`, but for the shift's rounding."""
    products = 1 + ball(kind.product) * 2
    roundings = 2 * EXPONENTIAL + 2 + (1 + kind.splits) * length
    return (2 * bound).exp() * (1 + gamma(roundings)) * products * (1 + ball(kind.storage))


def _shift(length: int) -> Ball:
    """Return SHIFT u ln T; a factor covers the terms of second order, since |x_j| < 128 unless p_j becomes 0."""
    return SHIFT * ball(2.0**-24) * ball(max(length, 2)).log() * ball(1.001)


def probability_bounds(bounds: list[list[Ball]], probabilities: list[list[Ball]], kind: Format) -> Iterator[Ball]:
    """Yield the bounds of the probabilities (T, T) of one head, row by row, given those of its scores.

    `probabilities` are the exact ones of the stored q and k. p x <= p (-ln p) <= 1 / e bounds the shift's rounding.
    """
    length = len(bounds)
    unit_shift = SHIFT * ball(2.0**-24) * ball(1.001)
    for i, (row, exact) in enumerate(zip(bounds, probabilities, strict=True)):
        factor, lost = _factor(_largest(row[: i + 1]), length, kind), ball(length + 1) * ball(kind.tiny)
        shifted = factor * (unit_shift * (ball(0.37) + _shift(length)) + _shift(length))
        for j, probability in enumerate(exact):
            yield probability * (factor - 1) + shifted + lost if j <= i else ball(0)


def output_bound(bounds: list[list[Ball]], v: Floats64, kind: Format) -> float:
    """Return an upper bound of the error of each number of one head's output, given the bounds of its scores."""
    length, largest = len(bounds), ball(float(np.abs(v).max()))
    e = _largest([number for row in bounds for number in row])
    factor = _factor(e, length, kind) * (1 + _shift(length)) ** 2 * (1 + ball(kind.storage))
    lost = ball(2 * length + 1) * ball(kind.tiny) * (1 + largest)
    bound = magnitude((factor - 1) * largest + lost).upper
    return min(bound, magnitude(largest * ball(2.1) + lost).upper)


def _largest(balls: list[Ball]) -> Ball:
    """Return an upper bound of balls of magnitudes."""
    best = flint().arb(0)
    for number in balls:
        if number.upper() > best:
            best = number.upper()
    return best
