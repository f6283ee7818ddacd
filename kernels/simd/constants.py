"""Numerical constants that scalar kernels and hand-written vector code share, so that both compute the same."""

import numpy as np

GELU_LINEAR = np.float32(1.5957691216057308)
"""2 sqrt(2 / pi): GELU(x) = x * sigmoid(x * (GELU_LINEAR + GELU_CUBIC * x**2)), see `kernels.common.gelu`."""
GELU_CUBIC = np.float32(0.07135481282636)
"""0.044715 * 2 sqrt(2 / pi)."""
GELU_LINEAR_LOG2 = np.float32(2.302208198144325)
"""log2(e) 2 sqrt(2 / pi): GELU(x) = x / (1 + 2**(-x (GELU_LINEAR_LOG2 + GELU_CUBIC_LOG2 x**2)))."""
GELU_CUBIC_LOG2 = np.float32(0.1029432395800235)
"""0.044715 * log2(e) 2 sqrt(2 / pi)."""

INTEGER_ROUNDER = np.float32(12582912.0)
"""1.5 * 2**23: adding it to |x| < 2**22 rounds x to an integer, which is left in the low bits of the sum."""

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
"""Upper part of ln 2; it has ten bits, so that n * LN2_HIGH is exact for every exponent n."""
LN2_LOW = np.float32(-2.12194440e-4)
"""ln 2 - LN2_HIGH."""
EXP_LOWEST = np.float32(-87.33)
"""Below it e**x is less than the smallest normal number: exp32 returns 0."""
EXP_HIGHEST = np.float32(88.37)
"""Above it the exponent would overflow: exp32 returns the result here, 2.4e38."""
EXP_POLYNOMIAL = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1,
    )
)  # fmt: skip
"""Coefficients p of Cephes' ``expf``, highest power first: e**r = 1 + r + r**2 p(r) for |r| <= ln(2) / 2."""
EXP2_LOWEST = np.float32(-126.0)
"""Below it 2**x would not be a normal number: exp2_32 returns 2**-126."""
EXP2_HIGHEST = np.float32(127.4)
"""Above it the exponent would overflow: exp2_32 returns the result here, whose reciprocal is flushed to zero."""
EXP2_POLYNOMIAL = tuple(
    np.float32(c)
    for c in (
        1.326472721392479e-3, 9.671512812595753e-3, 5.5507337448247575e-2, 2.4022242082675874e-1, 6.931469775973306e-1,
    )
)  # fmt: skip
"""Coefficients p, highest power first: 2**f = 1 + f p(f) for |f| <= 1/2, to a relative error of 9.2e-8.

Found by reweighted least squares.
"""
LOG_POLYNOMIAL = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
"""Coefficients p of Cephes' ``logf``, highest power first: ln(1 + r) = r - r**2 / 2 + r**3 p(r)."""

ONE_BITS = np.int32(0x3F800000)
"""The bits of 1.0; its exponent field is the bias."""
MANTISSA_BITS = np.int32(23)
"""Bits of float32 below its exponent."""

LARGEST_BF16 = np.float32(3.3895313892515355e38)
"""The largest finite bfloat16, 0x7F7F."""
