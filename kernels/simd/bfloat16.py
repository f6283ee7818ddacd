"""float32 to bfloat16 and back, at the speed of memory.

A bfloat16 is the upper half of a float32: the same exponents, 8 bits of precision instead of 24. Rounding is to the
nearest, ties to even; NaN stays NaN (made quiet), infinities stay, what lies beyond the largest finite number becomes
infinite, subnormal numbers are kept. It is integer arithmetic that LLVM turns into vector code on every machine, so
that the bits are the same on all; VCVTNEPS2BF16 would flush subnormal numbers, and memory is the limit anyway.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp, jit_strict_inline

BF16Bits = NDArray[np.uint16]
"""bfloat16 numbers as their bits."""

_HALF = np.uint32(0x7FFF)
_SHIFT = np.uint32(16)
_ONE = np.uint32(1)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_QUIET = np.uint32(0x0040)


@jit_strict_inline
def to_bf16(x: np.float32) -> np.uint16:
    """Return the bfloat16 nearest to `x`, as bits."""
    bits = np.float32(x).view(np.uint32)
    upper = np.uint32(bits >> _SHIFT)
    # Half of a unit in the last place, less one where the kept part is even: a tie then does not carry. The sum cannot
    # wrap around for a number; for a NaN it may, and is not used.
    round_to_bf16 = np.uint32(np.uint32(np.uint32(bits + _HALF) + np.uint32(upper & _ONE)) >> _SHIFT)
    is_nan = np.uint32(bits & _MAGNITUDE) > _INFINITY
    return np.uint16(np.uint32(upper | _QUIET) if is_nan else round_to_bf16)


@jit_strict_inline
def from_bf16(bits: np.uint16) -> np.float32:
    """Return the number with these bits; every bfloat16 is a float32."""
    return np.uint32(np.uint32(bits) << _SHIFT).view(np.float32)


@jit_strict_fp
def _to_bf16_compiled(source: Floats, out: BF16Bits) -> None:
    for i in range(source.shape[0]):
        out[i] = to_bf16(source[i])


@jit_strict_fp
def _from_bf16_compiled(source: BF16Bits, out: Floats) -> None:
    for i in range(source.shape[0]):
        out[i] = from_bf16(source[i])


def round_to_bf16(source: Floats) -> BF16Bits:
    """Return the bfloat16 nearest to each number, in new memory and by NumPy: for code without the compiler."""
    bits = np.ascontiguousarray(source, np.float32).view(np.uint32)
    upper = bits >> _SHIFT
    nearest = (bits + _HALF + (upper & _ONE)) >> _SHIFT
    return np.where((bits & _MAGNITUDE) > _INFINITY, upper | _QUIET, nearest).astype(np.uint16)


def upcast_bf16(source: BF16Bits) -> Floats:
    """Return the numbers as float32, in new memory and by NumPy."""
    return (source.astype(np.uint32) << _SHIFT).view(np.float32)


def _to_bf16_numpy(source: Floats, out: BF16Bits) -> None:
    out[...] = round_to_bf16(source)


def _from_bf16_numpy(source: BF16Bits, out: Floats) -> None:
    out[...] = upcast_bf16(source)


if JIT_ENABLED:
    _to, _from = _to_bf16_compiled, _from_bf16_compiled
else:
    _to, _from = _to_bf16_numpy, _from_bf16_numpy


@jit_strict_fp
def bf16_from_float32(source: Floats, out: BF16Bits) -> None:
    """Write the bfloat16 nearest to each number of `source` to `out`; both flat, of one length."""
    _to(source, out)


@jit_strict_fp
def float32_from_bf16(source: BF16Bits, out: Floats) -> None:
    """Write each number of `source` to `out` as float32; both flat, of one length."""
    _from(source, out)
