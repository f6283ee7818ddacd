"""Loads and stores of single elements in every number format, with which one kernel serves float32 and 16 bits.

The dtype of the row selects the format when a kernel is compiled, as in `kernels.simd.scalar`, so that the caller's
loop still vectorises.
"""

from typing import Any, cast

import numpy as np
from numba import types
from numba.extending import overload

from threadloom.kernels.compiling import OVERLOAD_STRICT_INLINE, Floats
from threadloom.kernels.simd.scalar import Bits16, load16, store16, store_result16

FloatRow = Floats | Bits16
"""Array of float32, or of the bits of bfloat16 (uint16) or float16 (int16)."""


def load_element(row: FloatRow, j: int) -> np.float32:
    """Return element `j` of a row as float32."""
    return np.float32(row[j]) if row.dtype == np.float32 else load16(cast(Bits16, row), j)


def store_element(row: FloatRow, j: int, x: np.float32) -> None:
    """Write `x` to element `j`, rounded to the row's format, to nearest and ties to even."""
    if row.dtype == np.float32:
        row[j] = x
    else:
        store16(cast(Bits16, row), j, x)


def store_result(row: FloatRow, j: int, x: np.float32) -> None:
    """Write `x`, a result of much arithmetic, as `store_element` does (`kernels.simd.scalar.store_result16`)."""
    store_element(row, j, x)


@overload(load_element, jit_options=OVERLOAD_STRICT_INLINE)
def _load_element(row: Any, j: Any) -> Any:
    if row.dtype == types.float32:

        def load_float32(row: Any, j: Any) -> Any:
            return row[j]

        return load_float32

    def load_short(row: Any, j: Any) -> Any:
        return load16(row, j)

    return load_short


@overload(store_element, jit_options=OVERLOAD_STRICT_INLINE)
def _store_element(row: Any, j: Any, x: Any) -> Any:
    if row.dtype == types.float32:

        def store_float32(row: Any, j: Any, x: Any) -> None:
            row[j] = x

        return store_float32

    def store_short(row: Any, j: Any, x: Any) -> None:
        store16(row, j, x)

    return store_short


@overload(store_result, jit_options=OVERLOAD_STRICT_INLINE)
def _store_result(row: Any, j: Any, x: Any) -> Any:
    if row.dtype == types.float32:

        def store_float32(row: Any, j: Any, x: Any) -> None:
            row[j] = x

        return store_float32

    def store_short(row: Any, j: Any, x: Any) -> None:
        store_result16(row, j, x)

    return store_short
