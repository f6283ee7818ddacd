"""Conversion from float32 to float16 (IEEE 754 binary16) and back, of single numbers and, at memory speed, of arrays.

A float16 has a sign, 5 bits of exponent and 10 of fraction: finite up to 65504, normal from 6.1e-5, subnormal from
6.0e-8. Numba has no such type on the CPU, so the numbers are stored as their bits in int16 arrays (uint16 is bfloat16,
see `kernels.simd.scalar`). Rounding is to nearest, ties to even; subnormal numbers are kept, numbers of at least 65520,
half a unit in the last place above 65504, become infinite, infinities are kept, and NaN remains NaN with its upper
bits, and becomes quiet.

If the target has F16C, the conversion is one instruction, VCVTPS2PH or VCVTPH2PS, which LLVM emits for its type
``half`` and which obeys all of the above. On an x86-64 without it LLVM would call a function of the C runtime that
compiled code cannot find, so the conversion is integer arithmetic (after F. Giesen's public-domain
float_to_half_fast3_rtne and half_to_float), which LLVM vectorises too; the bits are the same. The choice is made at
import.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.simd.vector import FLOAT32, HAS_F16C, INT16

FP16Bits = NDArray[np.int16]
"""float16 numbers, stored as their bits."""

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_TOO_LARGE = np.uint32(0x47800000)  # 65536: infinite as a float16 with any rounding
_SMALLEST_NORMAL = np.uint32(0x38800000)  # 2**-14
_ONE_HALF = np.float32(0.5)  # its last place is 2**-24, the smallest float16: a sum with it is a count of these
_ONE_HALF_BITS = np.uint32(0x3F000000)
_REBIAS = np.uint32(0xC8000FFF)  # (15 - 127) << 23, plus half of a float16's last place, less one
_FP16_INFINITY, _FP16_QUIET, _FP16_FRACTION = np.uint32(0x7C00), np.uint32(0x0200), np.uint32(0x03FF)
_DROPPED, _ONE, _SIGN_SHIFT = np.uint32(13), np.uint32(1), np.uint32(16)
_SHIFTED_EXPONENT = np.uint32(0x0F800000)  # the exponent field of a float16 after its shift by `_DROPPED`
_EXPONENT_BIAS = np.uint32(0x38000000)  # (127 - 15) << 23
_QUIET = np.uint32(0x00400000)
_FP16_MAGNITUDE, _FP16_SIGN = np.uint32(0x7FFF), np.uint32(0x8000)
_SUBNORMAL_BASE_BITS, _SUBNORMAL_BASE = np.uint32(0x00800000), np.float32(6.103515625e-05)  # 1 << 23; 2**-14


@jit_strict_inline
def to_fp16_integer(x: np.float32) -> np.int16:
    """Return the float16 nearest to `x`, as bits, by integer arithmetic: compiled code only."""
    bits = np.float32(x).view(np.uint32)
    size = np.uint32(bits & _MAGNITUDE)
    # A subnormal float16 is a count of 2**-24, which the addition itself rounds. All three cases are computed and one
    # is selected, so that the caller's loop has no branch.
    small = np.uint32(np.float32(size.view(np.float32) + _ONE_HALF).view(np.uint32) - _ONE_HALF_BITS)
    odd = np.uint32(np.uint32(size >> _DROPPED) & _ONE)
    normal = np.uint32(np.uint32(np.uint32(size + _REBIAS) + odd) >> _DROPPED)
    nan = np.uint32(np.uint32(_FP16_INFINITY | _FP16_QUIET) | np.uint32(np.uint32(size >> _DROPPED) & _FP16_FRACTION))
    large = nan if size > _INFINITY else _FP16_INFINITY
    upper = large if size >= _TOO_LARGE else normal
    half = small if size < _SMALLEST_NORMAL else upper
    return np.int16(np.uint16(np.uint32(half | np.uint32(np.uint32(bits & _SIGN) >> _SIGN_SHIFT))))


@jit_strict_inline
def from_fp16_integer(bits: np.int16) -> np.float32:
    """Return the float16 with these bits as float32, by integer arithmetic: compiled code only."""
    half = np.uint32(np.uint16(bits))
    size = np.uint32(np.uint32(half & _FP16_MAGNITUDE) << _DROPPED)
    exponent = np.uint32(size & _SHIFTED_EXPONENT)
    normal = np.uint32(size + _EXPONENT_BIAS)
    large = np.uint32(size | _INFINITY)
    large = np.uint32(large | _QUIET) if large > _INFINITY else large
    # With the exponent of 2**-14 the fraction follows an implied 1, which is subtracted again, exactly.
    lifted = np.uint32(normal + _SUBNORMAL_BASE_BITS).view(np.float32)
    small = np.float32(lifted - _SUBNORMAL_BASE).view(np.uint32)
    upper = large if exponent == _SHIFTED_EXPONENT else normal
    result = small if exponent == np.uint32(0) else upper
    return np.uint32(result | np.uint32(np.uint32(half & _FP16_SIGN) << _SIGN_SHIFT)).view(np.float32)


@intrinsic
def _to_fp16_instruction(typing_context: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), INT16)

    return types.int16(types.float32), codegen


@intrinsic
def _from_fp16_instruction(typing_context: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), FLOAT32)

    return types.float32(types.int16), codegen


def round_to_fp16(source: Floats) -> FP16Bits:
    """Return the float16 nearest to each element, in new memory and by NumPy: for code that is not compiled."""
    numbers = np.ascontiguousarray(source, np.float32)
    with np.errstate(over="ignore"):
        nearest = numbers.astype(np.float16).view(np.uint16)
    bits = numbers.view(np.uint32)
    nan = ((bits & _SIGN) >> _SIGN_SHIFT) | _FP16_INFINITY | _FP16_QUIET | ((bits >> _DROPPED) & _FP16_FRACTION)
    return np.where(np.isnan(numbers), nan, nearest).astype(np.uint16).view(np.int16)


def upcast_fp16(source: FP16Bits) -> Floats:
    """Return the elements as float32, in new memory and by NumPy."""
    numbers = np.ascontiguousarray(source, np.int16).view(np.float16).astype(np.float32)
    bits = numbers.view(np.uint32)
    return np.where(np.isnan(numbers), bits | _QUIET, bits).view(np.float32)


def _to_fp16_numpy(x: np.float32) -> np.int16:
    return np.int16(round_to_fp16(np.array([x], np.float32))[0])


def _from_fp16_numpy(bits: np.int16) -> np.float32:
    return np.float32(upcast_fp16(np.array([bits], np.int16))[0])


if not JIT_ENABLED:
    _to_scalar, _from_scalar = _to_fp16_numpy, _from_fp16_numpy
elif HAS_F16C:
    _to_scalar, _from_scalar = _to_fp16_instruction, _from_fp16_instruction
else:
    _to_scalar, _from_scalar = to_fp16_integer, from_fp16_integer


@jit_strict_inline
def to_fp16(x: np.float32) -> np.int16:
    """Return the float16 nearest to `x`, as bits."""
    return _to_scalar(np.float32(x))


@jit_strict_inline
def from_fp16(bits: np.int16) -> np.float32:
    """Return the float16 with these bits as float32; exact."""
    return _from_scalar(np.int16(bits))


@jit_strict_fp
def _to_fp16_compiled(source: Floats, out: FP16Bits) -> None:
    for i in range(source.shape[0]):
        out[i] = to_fp16(source[i])


@jit_strict_fp
def _from_fp16_compiled(source: FP16Bits, out: Floats) -> None:
    for i in range(source.shape[0]):
        out[i] = from_fp16(source[i])


def _to_fp16_array_numpy(source: Floats, out: FP16Bits) -> None:
    out[...] = round_to_fp16(source)


def _from_fp16_array_numpy(source: FP16Bits, out: Floats) -> None:
    out[...] = upcast_fp16(source)


if JIT_ENABLED:
    _to, _from = _to_fp16_compiled, _from_fp16_compiled
else:
    _to, _from = _to_fp16_array_numpy, _from_fp16_array_numpy


@jit_strict_fp
def fp16_from_float32(source: Floats, out: FP16Bits) -> None:
    """Write the float16 nearest to each element of `source` to `out`; both (N,)."""
    _to(source, out)


@jit_strict_fp
def float32_from_fp16(source: FP16Bits, out: Floats) -> None:
    """Write each element of `source` to `out` as float32; both (N,)."""
    _from(source, out)
