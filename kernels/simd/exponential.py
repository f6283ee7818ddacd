"""Building blocks of softmax and sigmoid that LLVM vectorises: exp as a polynomial, and the largest of a row.

A call of ``math.exp`` in a loop stays one call an element; these are plain arithmetic and become vector code.
"""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_always_inline, jit_kernel, jit_strict_inline

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # ten bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUNDER = np.float32(12582912.0)  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
_LOWEST = np.float32(-87.33)  # below it the result is below the smallest normal number: returned as 0
_HIGHEST = np.float32(88.37)  # above it the exponent would not fit: the result stays at 2.4e38
_ONE_BITS = np.int32(0x3F800000)
_MANTISSA_BITS = np.int32(23)
_SIGN_SHIFT = np.int32(31)
_NOT_SIGN = np.int32(0x7FFFFFFF)
_P0 = np.float32(1.9875691500e-4)
_P1 = np.float32(1.3981999507e-3)
_P2 = np.float32(8.3334519073e-3)
_P3 = np.float32(4.1665795894e-2)
_P4 = np.float32(1.6666665459e-1)
_P5 = np.float32(5.0000001201e-1)
_SMALLEST = np.int32(-0x80000000)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_LN_SERIES = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
_SQRT_HALF = np.float32(0.70710678118654752440)
_HALF = np.float32(0.5)


@jit_always_inline
def exp32(x: np.float32) -> np.float32:
    """Return e**x to a relative error of about 1e-7; 0 below -87.33 (and at -inf), 2.4e38 above 88.37, NaN at NaN.

    Cody and Waite's reduction x = n ln 2 + r with the polynomial of Cephes' ``expf`` on r, and 2**n put together as
    bits. The reduction works because `jit_always_inline` does not reassociate: ``t - _ROUNDER`` must round.
    """
    y = _LOWEST if x < _LOWEST else x  # noqa: FURB136 - max and min would not promise to keep a NaN
    y = _HIGHEST if y > _HIGHEST else y  # noqa: FURB136
    t = np.float32(y * _LOG2_E + _ROUNDER)
    n = t - _ROUNDER
    r = y - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    p = p * (r * r) + r + _ONE
    power = np.int32(np.int32(t.view(np.int32) << _MANTISSA_BITS) + _ONE_BITS).view(np.float32)
    return _ZERO if x < _LOWEST else p * power


@jit_always_inline
def sigmoid32(x: np.float32) -> np.float32:
    """Return 1 / (1 + e**-x)."""
    return _ONE / (_ONE + exp32(-x))


@jit_kernel
def row_max(row: Floats, count: int) -> np.float32:
    """Return the largest of the first `count` (at least 1) elements of `row`; a positive NaN counts as the largest.

    The comparison is made on integers in the floats' order, because a float maximum would vectorise only under the
    assumption that there is no NaN.
    """
    largest = _SMALLEST
    for j in range(count):
        bits = np.float32(row[j]).view(np.int32)
        ordered = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _NOT_SIGN))
        largest = np.int32(max(largest, ordered))
    return np.int32(largest ^ np.int32(np.int32(largest >> _SIGN_SHIFT) & _NOT_SIGN)).view(np.float32)


@jit_strict_inline
def log32(x: np.float32) -> np.float32:
    """Return ln(x) of a positive normal number as Cephes' ``logf`` does; infinity and NaN give themselves."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32(np.int32(bits >> np.int32(23)) - np.int32(126))
    m = np.int32(np.int32(bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    low = m < _SQRT_HALF
    exponent = exponent - _ONE if low else exponent
    r = (m + m if low else m) - _ONE
    z = r * r
    p = _LN_SERIES[0]
    p = p * r + _LN_SERIES[1]
    p = p * r + _LN_SERIES[2]
    p = p * r + _LN_SERIES[3]
    p = p * r + _LN_SERIES[4]
    p = p * r + _LN_SERIES[5]
    p = p * r + _LN_SERIES[6]
    p = p * r + _LN_SERIES[7]
    p = p * r + _LN_SERIES[8]
    y = p * r * z + exponent * _LN2_LOW - _HALF * z
    y = r + y + exponent * _LN2_HIGH
    return y if x < np.float32(np.inf) else x
