"""Conversion from float32 to bfloat16 and back, at the speed of memory.

A bfloat16 is the upper half of a float32: the same exponents, 8 bits of precision instead of 24. Rounding is to
nearest, ties to even; NaN remains NaN (and becomes quiet), infinities are kept, numbers that round beyond the largest
finite one become infinite, subnormal numbers are kept. It is integer arithmetic that LLVM vectorises on every machine,
so the bits are the same on all; VCVTNEPS2BF16 would flush subnormal numbers, and memory is the bottleneck anyway.

Results of arithmetic are another matter: kernels flush subnormal ones already (`kernels.compiling.float_environment`),
and nine vector operations for each rounding take as long as the arithmetic. `result_to_bf16` is the instruction on
a target with AVX512_BF16, with the same bits for every number that is not subnormal.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.simd.vector import HAS_AVX512_BF16, INT16, Bfloat

BF16Bits = NDArray[np.uint16]
"""bfloat16 numbers, stored as their bits."""

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
    # Add half of a unit in the last place, less one if the kept part is even: then a tie does not carry. The sum wraps
    # around only for a NaN, for which it is not used.
    nearest = np.uint32(np.uint32(np.uint32(bits + _HALF) + np.uint32(upper & _ONE)) >> _SHIFT)
    is_nan = np.uint32(bits & _MAGNITUDE) > _INFINITY
    return np.uint16(np.uint32(upper | _QUIET) if is_nan else nearest)


@intrinsic
def _to_bf16_instruction(typing_context: Any, x: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], Bfloat()), INT16)

    return types.uint16(types.float32), codegen


_round_result = _to_bf16_instruction if HAS_AVX512_BF16 and JIT_ENABLED else to_bf16


@jit_strict_inline
def result_to_bf16(x: np.float32) -> np.uint16:
    """Return the bfloat16 nearest to `x`, a result of arithmetic, as bits; a subnormal number may become zero."""
    return _round_result(np.float32(x))


@jit_strict_inline
def from_bf16(bits: np.uint16) -> np.float32:
    """Return the bfloat16 with these bits as float32; exact."""
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
    """Return the bfloat16 nearest to each element, in new memory and by NumPy: for code that is not compiled."""
    bits = np.ascontiguousarray(source, np.float32).view(np.uint32)
    upper = bits >> _SHIFT
    nearest = (bits + _HALF + (upper & _ONE)) >> _SHIFT
    return np.where((bits & _MAGNITUDE) > _INFINITY, upper | _QUIET, nearest).astype(np.uint16)


def upcast_bf16(source: BF16Bits) -> Floats:
    """Return the elements as float32, in new memory and by NumPy."""
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
    """Write the bfloat16 nearest to each element of `source` to `out`; both (N,)."""
    _to(source, out)


@jit_strict_fp
def float32_from_bf16(source: BF16Bits, out: Floats) -> None:
    """Write each element of `source` to `out` as float32; both (N,)."""
    _from(source, out)
