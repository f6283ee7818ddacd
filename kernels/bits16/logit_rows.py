"""Passes over a row of float32 logits as LLVM vectors: its largest, its exponentials with their sum, and its rounding.

Numba's loops would use vectors of half the width on some processors with AVX-512. The order of a sum is fixed here: it
does not depend on how LLVM vectorises a loop, only on `LANES`. Addresses count bytes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from threadloom.kernels.compiling import JIT_ENABLED, OVERLOAD_OPTIONS, Floats, jit_strict_fp
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    LANES,
    LOG2_E,
    VECTOR_BYTES,
    Bits16,
    broadcast,
    exp2_32,
    exp2_vector,
    float32_vector,
    int64,
    load_floats,
    maximum,
    pointer,
    reduce_lanes,
    round_row,
    store16,
)

_GROUP = 4  # accumulators: the operations that update one wait for each other
_LOWEST = np.float32(-np.inf)
_ZERO = np.float32(0.0)


def _accumulate(
    builder: Any, vectors: Any, start: float, value: Callable[[Any], Any], join: Callable[[Any, Any], Any]
) -> Any:
    """Return `start` joined with every lane of ``value(offset)`` for `vectors` vectors, as one float."""
    slots = [cgutils.alloca_once_value(builder, float32_vector(start)) for _ in range(_GROUP)]

    def update(slot: Any, number: Any) -> None:
        builder.store(join(value(builder.mul(number, int64(VECTOR_BYTES))), builder.load(slot)), slot)

    for slot in slots:
        builder.store(float32_vector(start), slot)
    whole = builder.and_(vectors, int64(-_GROUP))
    with cgutils.for_range_slice(builder, int64(0), whole, int64(_GROUP)) as (first, _):
        for i, slot in enumerate(slots):
            update(slot, builder.add(first, int64(i)))
    with cgutils.for_range_slice(builder, whole, vectors, int64(1)) as (number, _):
        update(slots[0], number)
    total = builder.load(slots[0])
    for slot in slots[1:]:
        total = join(builder.load(slot), total)
    return reduce_lanes(builder, total, join)


@intrinsic
def _largest_of(typing_context: Any, row: Any, vectors: Any) -> Any:
    """Return the largest number of `vectors` vectors of float32 at the address `row`; NaN does not count."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, vectors = arguments
        return _accumulate(
            builder,
            vectors,
            float("-inf"),
            lambda offset: load_floats(builder, row, offset),
            lambda a, b: maximum(builder, a, b),
        )

    return types.float32(types.intp, types.intp), codegen


@intrinsic
def _exponentiate(typing_context: Any, row: Any, vectors: Any, largest: Any) -> Any:
    """Replace `vectors` vectors of float32 at the address `row` by ``exp(x - largest)``, and return their sum."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, vectors, largest = arguments
        shifts = broadcast(builder, largest, FLOAT32_VECTOR)

        def exponential(offset: Any) -> Any:
            difference = builder.fsub(load_floats(builder, row, offset), shifts)
            e = exp2_vector(builder, builder.fmul(difference, float32_vector(LOG2_E)))
            builder.store(e, pointer(builder, FLOAT32_VECTOR, row, offset), align=4)
            return e

        return _accumulate(builder, vectors, 0.0, exponential, builder.fadd)

    return types.float32(types.intp, types.intp, types.float32), codegen


@jit_strict_fp  # the range reduction of a power of two must not be reassociated
def _exponentials_compiled(row: Floats) -> tuple[np.float32, np.float32]:
    width, vectors, largest = row.shape[0], row.shape[0] // LANES, _LOWEST
    for j in range(vectors * LANES, width):
        largest = row[j] if row[j] > largest else largest  # noqa: FURB136 - NaN does not count
    if vectors > 0:
        most = _largest_of(row.ctypes.data, vectors)
        largest = max(largest, most)
    total = _ZERO
    for j in range(vectors * LANES, width):
        e = exp2_32(np.float32(row[j] - largest) * LOG2_E)
        row[j] = e
        total += e
    if vectors > 0:
        total += _exponentiate(row.ctypes.data, vectors, largest)
    return largest, total


def _exponentials_numpy(row: Floats) -> tuple[np.float32, np.float32]:
    largest = row.max()
    np.exp(row - largest, out=row)
    return largest, row.sum()


exponentials = _exponentials_compiled if JIT_ENABLED else _exponentials_numpy
"""Replace a row of logits by ``exp(row - largest)``; return the largest and the sum, which is NaN if a logit is."""


def scale_and_round(row: Floats, factor: np.float32, out: Bits16) -> None:
    """Write ``row * factor``, rounded, to `out`."""
    _scale_elements(row, factor, out)


@overload(scale_and_round, jit_options=OVERLOAD_OPTIONS)
def _scale_and_round(row: Any, factor: Any, out: Any) -> Any:
    return _scale_bf16 if out.dtype == types.uint16 else _scale_elements


def _scale_elements(row: Any, factor: Any, out: Any) -> None:
    for j in range(row.shape[0]):
        store16(out, j, row[j] * factor)


def _scale_bf16(row: Any, factor: Any, out: Any) -> None:
    vectors = row.shape[0] // LANES
    round_row(row.ctypes.data, factor, out.ctypes.data, vectors)
    for j in range(vectors * LANES, row.shape[0]):
        store16(out, j, row[j] * factor)
