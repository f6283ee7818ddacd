"""Loads and stores of single 16-bit numbers, with which one kernel serves bfloat16 and float16.

NumPy has no bfloat16 and Numba no float16 on the CPU, so both are stored as their bits, and the integer type is the
format: uint16 is bfloat16, int16 is float16. `load16` and `store16` dispatch on it when a kernel is compiled, so the
caller's loop still vectorises.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from threadloom.kernels.compiling import OVERLOAD_STRICT_INLINE
from threadloom.kernels.simd.bfloat16 import from_bf16, result_to_bf16, round_to_bf16, to_bf16, upcast_bf16
from threadloom.kernels.simd.float16 import from_fp16, round_to_fp16, to_fp16, upcast_fp16

Bits16 = NDArray[np.uint16] | NDArray[np.int16]
"""bfloat16 (uint16) or float16 (int16) numbers, stored as their bits."""


def load16(row: Bits16, j: int) -> np.float32:
    """Return element `j` of a row of 16-bit numbers as float32."""
    if row.dtype == np.int16:
        return np.float32(upcast_fp16(row[j : j + 1].view(np.int16))[0])
    return np.float32(upcast_bf16(row[j : j + 1].view(np.uint16))[0])


def store16(row: Bits16, j: int, x: np.float32) -> None:
    """Round `x` to the row's format, to nearest and ties to even, and write it to element `j`."""
    number = np.array([x], np.float32)
    row[j : j + 1] = round_to_fp16(number) if row.dtype == np.int16 else round_to_bf16(number)


def store_result16(row: Bits16, j: int, x: np.float32) -> None:
    """Write `x`, a result of arithmetic, as `store16` does: with an instruction if the target has one.

    For loops with much arithmetic. LLVM takes the instruction for expensive, and vectorises a loop that does little
    else with vectors of a quarter of the width: then `store16` is faster.
    """
    store16(row, j, x)


@overload(load16, jit_options=OVERLOAD_STRICT_INLINE)
def _load16(row: Any, j: Any) -> Any:
    if row.dtype == types.uint16:

        def load_bf16(row: Any, j: Any) -> Any:
            return from_bf16(row[j])

        return load_bf16
    if row.dtype == types.int16:

        def load_half(row: Any, j: Any) -> Any:
            return from_fp16(row[j])

        return load_half
    return None


@overload(store16, jit_options=OVERLOAD_STRICT_INLINE)
def _store16(row: Any, j: Any, x: Any) -> Any:
    if row.dtype == types.uint16:

        def store_bf16(row: Any, j: Any, x: Any) -> None:
            row[j] = to_bf16(x)

        return store_bf16
    if row.dtype == types.int16:

        def store_half(row: Any, j: Any, x: Any) -> None:
            row[j] = to_fp16(x)

        return store_half
    return None


@overload(store_result16, jit_options=OVERLOAD_STRICT_INLINE)
def _store_result16(row: Any, j: Any, x: Any) -> Any:
    if row.dtype == types.uint16:

        def store_bf16(row: Any, j: Any, x: Any) -> None:
            row[j] = result_to_bf16(x)

        return store_bf16

    def store_half(row: Any, j: Any, x: Any) -> None:
        store16(row, j, x)

    return store_half
