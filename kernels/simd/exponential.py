"""Elementary functions as arithmetic that LLVM vectorises: exp, log and sigmoid as polynomials, and a row's maximum.

A call of ``math.exp`` in a loop remains one library call per element; these functions become vector code.
"""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_always_inline, jit_kernel, jit_strict_inline
from threadloom.kernels.simd.constants import (
    EXP2_HIGHEST,
    EXP2_LOWEST,
    EXP2_POLYNOMIAL,
    EXP_HIGHEST,
    EXP_LOWEST,
    EXP_POLYNOMIAL,
    INTEGER_ROUNDER,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    LOG_POLYNOMIAL,
    MANTISSA_BITS,
    ONE_BITS,
)

_SIGN_SHIFT = np.int32(31)
_NOT_SIGN = np.int32(0x7FFFFFFF)
_SMALLEST = np.int32(-0x80000000)
_SQRT_HALF = np.float32(0.70710678118654752440)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)


@jit_always_inline
def exp32(x: np.float32) -> np.float32:
    """Return e**x to a relative error of about 1e-7; 0 below -87.33 (and at -inf), 2.4e38 above 88.37, NaN at NaN.

    Uses Cody and Waite's reduction x = n ln 2 + r, the polynomial of Cephes' ``expf`` on r, and 2**n assembled as bits.
    The reduction relies on `jit_always_inline` not reassociating: ``t - INTEGER_ROUNDER`` must round.
    """
    y = EXP_LOWEST if x < EXP_LOWEST else x  # noqa: FURB136 - max and min need not keep a NaN
    y = EXP_HIGHEST if y > EXP_HIGHEST else y  # noqa: FURB136
    t = np.float32(y * LOG2_E + INTEGER_ROUNDER)
    n = t - INTEGER_ROUNDER
    r = y - n * LN2_HIGH
    r = r - n * LN2_LOW
    p = EXP_POLYNOMIAL[0] * r + EXP_POLYNOMIAL[1]
    p = p * r + EXP_POLYNOMIAL[2]
    p = p * r + EXP_POLYNOMIAL[3]
    p = p * r + EXP_POLYNOMIAL[4]
    p = p * r + EXP_POLYNOMIAL[5]
    p = p * (r * r) + r + _ONE
    power = np.int32(np.int32(t.view(np.int32) << MANTISSA_BITS) + ONE_BITS).view(np.float32)
    return _ZERO if x < EXP_LOWEST else p * power


@jit_always_inline
def exp2_32(x: np.float32) -> np.float32:
    """Return 2**x to a relative error of about 2e-7; at least 2**-126, at most 2**127.4, NaN at NaN.

    It takes two thirds of the operations of `exp32`, as its range reduction is one subtraction. It serves callers that
    can multiply log2(e) into a constant of their own: a rounded product x log2(e) would be off by 2**-24 |x|.
    """
    y = EXP2_LOWEST if x < EXP2_LOWEST else x  # noqa: FURB136 - max and min need not keep a NaN
    y = EXP2_HIGHEST if y > EXP2_HIGHEST else y  # noqa: FURB136
    t = np.float32(y + INTEGER_ROUNDER)
    f = y - (t - INTEGER_ROUNDER)
    p = EXP2_POLYNOMIAL[0] * f + EXP2_POLYNOMIAL[1]
    p = p * f + EXP2_POLYNOMIAL[2]
    p = p * f + EXP2_POLYNOMIAL[3]
    p = p * f + EXP2_POLYNOMIAL[4]
    p = p * f + _ONE
    return p * np.int32(np.int32(t.view(np.int32) << MANTISSA_BITS) + ONE_BITS).view(np.float32)


@jit_always_inline
def sigmoid32(x: np.float32) -> np.float32:
    """Return 1 / (1 + e**-x)."""
    return _ONE / (_ONE + exp32(-x))


@jit_kernel
def row_max(row: Floats, count: int) -> np.float32:
    """Return the maximum of the first `count` (at least 1) elements of `row`; a NaN with sign bit 0 is the maximum.

    Compares integers that have the order of the floats, because LLVM vectorises a float maximum only under the
    assumption that no element is NaN.
    """
    largest = _SMALLEST
    for j in range(count):
        bits = np.float32(row[j]).view(np.int32)
        ordered = np.int32(bits ^ np.int32(np.int32(bits >> _SIGN_SHIFT) & _NOT_SIGN))
        largest = np.int32(max(largest, ordered))
    return np.int32(largest ^ np.int32(np.int32(largest >> _SIGN_SHIFT) & _NOT_SIGN)).view(np.float32)


@jit_strict_inline
def log32(x: np.float32) -> np.float32:
    """Return ln(x) of a positive normal number as Cephes' ``logf`` does; infinity and NaN are returned unchanged."""
    bits = np.float32(x).view(np.int32)
    exponent = np.float32(np.int32(bits >> MANTISSA_BITS) - np.int32(126))
    m = np.int32(np.int32(bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    low = m < _SQRT_HALF
    exponent = exponent - _ONE if low else exponent
    r = (m + m if low else m) - _ONE
    z = r * r
    p = LOG_POLYNOMIAL[0]
    p = p * r + LOG_POLYNOMIAL[1]
    p = p * r + LOG_POLYNOMIAL[2]
    p = p * r + LOG_POLYNOMIAL[3]
    p = p * r + LOG_POLYNOMIAL[4]
    p = p * r + LOG_POLYNOMIAL[5]
    p = p * r + LOG_POLYNOMIAL[6]
    p = p * r + LOG_POLYNOMIAL[7]
    p = p * r + LOG_POLYNOMIAL[8]
    y = p * r * z + exponent * LN2_LOW - _HALF * z
    y = r + y + exponent * LN2_HIGH
    return y if x < np.float32(np.inf) else x
