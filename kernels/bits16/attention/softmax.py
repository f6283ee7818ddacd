"""The softmax of attention in bfloat16 and its gradient, as passes over rows of scores in LLVM vectors.

They are not `kernels.common.softmax` with another load and store: Numba's loops would use vectors of half the width on
some processors with AVX-512, and one pass per operation. Here exponential, rounding and sums are one pass over four or
two rows at a time, so that their dependency chains overlap; the result is bfloat16, and packed where a GEMM needs it.

Addresses and strides count bytes. Vectors reach past the end of a row by less than ``2 * LANES`` elements.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.bits16.attention.vectors import broadcast_int, column_numbers
from threadloom.kernels.compiling import numba_type
from threadloom.kernels.matmul import PANEL, MatrixRef
from threadloom.kernels.simd import (
    FLOAT32,
    FLOAT32_VECTOR,
    INT16_VECTOR,
    INT32_VECTOR,
    LANES,
    VECTOR_BYTES,
    broadcast,
    exp2_vector,
    fused_multiply_add,
    int32_vector,
    int64,
    load_floats,
    maximum,
    pointer,
    reduce_lanes,
    store_bf16,
)

ROW_GROUP = 4
"""Rows that `exp_rows` processes at a time."""
_ZERO = ir.Constant(FLOAT32_VECTOR, None)
_LOWEST = ir.Constant(FLOAT32_VECTOR, [float("-inf")] * LANES)


class ExpRows(NamedTuple):
    """Operands of `exp_rows`, from the first of its rows on."""

    scores: MatrixRef  # float32
    probabilities: MatrixRef  # bfloat16, unnormalised
    largest: int  # address: each row's largest score, float32
    totals: int  # address: each row's sum of exponentials, before they are rounded, float32


class _ExpRowsEmitter:
    """Emits the vector operations of `exp_rows`; `v` is the number of a vector in its row, an int64."""

    def __init__(self, builder: Any, operands: Any, seen: Any, factor: Any) -> None:
        self._builder = builder
        scores, probabilities, self._largest, self._totals = cgutils.unpack_tuple(builder, operands, 4)
        self._scores, self._probabilities = (self._rows_of(matrix) for matrix in (scores, probabilities))
        self._limits = [broadcast_int(builder, builder.add(seen, int64(i))) for i in range(ROW_GROUP)]
        self._factors = broadcast(builder, factor, FLOAT32_VECTOR)
        self._highest = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(ROW_GROUP)]
        self._sums = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(ROW_GROUP)]
        self._shifts: list[Any] = []
        for i in range(ROW_GROUP):
            builder.store(_LOWEST, self._highest[i])
            builder.store(_ZERO, self._sums[i])

    def _rows_of(self, matrix: Any) -> list[Any]:
        address, stride = cgutils.unpack_tuple(self._builder, matrix, 2)
        return [self._builder.add(address, self._builder.mul(stride, int64(i))) for i in range(ROW_GROUP)]

    def _load(self, i: int, v: Any) -> Any:
        return load_floats(self._builder, self._scores[i], self._builder.mul(v, int64(VECTOR_BYTES)))

    def _masked(self, i: int, v: Any, x: Any, otherwise: Any) -> Any:
        inside = self._builder.icmp_signed("<", column_numbers(self._builder, v), self._limits[i])
        return self._builder.select(inside, x, otherwise)

    def find_largest(self, v: Any, *, masked: bool) -> None:
        builder = self._builder
        for i, highest in enumerate(self._highest):
            x = self._load(i, v)
            if masked:
                x = self._masked(i, v, x, _LOWEST)
            builder.store(maximum(builder, x, builder.load(highest)), highest)

    def store_largest(self) -> None:
        builder = self._builder
        for i, highest in enumerate(self._highest):
            top = reduce_lanes(builder, builder.load(highest), lambda a, b: maximum(builder, a, b))
            builder.store(top, pointer(builder, FLOAT32, self._largest, int64(4 * i)))
            self._shifts.append(builder.fneg(builder.fmul(broadcast(builder, top, FLOAT32_VECTOR), self._factors)))

    def exponentiate(self, v: Any, *, masked: bool) -> None:
        builder = self._builder
        for i, total in enumerate(self._sums):
            e = exp2_vector(builder, fused_multiply_add(builder, self._load(i, v), self._factors, self._shifts[i]))
            if masked:
                e = self._masked(i, v, e, _ZERO)
            builder.store(builder.fadd(builder.load(total), e), total)
            store_bf16(builder, e, self._probabilities[i], builder.mul(v, int64(VECTOR_BYTES // 2)))

    def clear(self, v: Any) -> None:
        for row in self._probabilities:
            place = pointer(self._builder, INT16_VECTOR, row, self._builder.mul(v, int64(VECTOR_BYTES // 2)))
            self._builder.store(ir.Constant(INT16_VECTOR, None), place, align=2)

    def store_totals(self) -> None:
        builder = self._builder
        for i, total in enumerate(self._sums):
            value = reduce_lanes(builder, builder.load(total), builder.fadd)
            builder.store(value, pointer(builder, FLOAT32, self._totals, int64(4 * i)))


@intrinsic
def exp_rows(typing_context: Any, operands: Any, seen: Any, width: Any, factor: Any) -> Any:
    """Replace `ROW_GROUP` rows of scores by ``2**(factor * (score - largest))``, rounded to bfloat16.

    Row i sees the first ``seen + i`` scores; the elements that follow, up to `width`, become 0. `operands` is of type
    `ExpRows`; `factor` is positive.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands, seen, width, factor = arguments
        emit = _ExpRowsEmitter(builder, operands, seen, factor)
        whole = builder.udiv(seen, int64(LANES))  # vectors that every row sees completely
        some = _vectors(builder, builder.add(seen, int64(ROW_GROUP - 1)))  # vectors of which some row sees a part
        _for_range(builder, int64(0), whole, lambda v: emit.find_largest(v, masked=False))
        _for_range(builder, whole, some, lambda v: emit.find_largest(v, masked=True))
        emit.store_largest()
        _for_range(builder, int64(0), whole, lambda v: emit.exponentiate(v, masked=False))
        _for_range(builder, whole, some, lambda v: emit.exponentiate(v, masked=True))
        _for_range(builder, some, _vectors(builder, width), emit.clear)
        emit.store_totals()
        return context.get_dummy_value()

    return types.void(numba_type(ExpRows), types.intp, types.intp, types.float32), codegen


def _vectors(builder: Any, elements: Any) -> Any:
    """Return the number of vectors that hold `elements` elements."""
    return builder.udiv(builder.add(elements, int64(LANES - 1)), int64(LANES))


def _for_range(builder: Any, start: Any, stop: Any, body: Callable[[Any], None]) -> None:
    with cgutils.for_range_slice(builder, start, stop, int64(1)) as (v, _):
        body(v)


class SoftmaxBackwardRows(NamedTuple):
    """Operands of `softmax_backward_rows`, from the first of its two rows on; a row is a key, a column a query."""

    scores: MatrixRef  # float32
    d_probabilities: int  # address: float32, with the stride of `scores`
    probabilities: MatrixRef  # bfloat16
    d_scores: int  # address: bfloat16, with the stride of `probabilities`
    d_score_pairs: MatrixRef  # the same rows as one packed row of pairs of keys; stride: from panel to panel
    shifts: int  # address: of each query, log-sum-exp of its scores times log2(e), float32
    deltas: int  # address: of each query, the dot product of the output with its gradient, float32


class _SoftmaxBackwardEmitter:
    """Emits the vector operations of `softmax_backward_rows`; `v` is the number of a vector in its row, an int64."""

    def __init__(self, builder: Any, operands: Any, factor: Any, first: Any) -> None:
        self._builder = builder
        scores, d_probabilities, probabilities, d_scores, pairs, self._shifts, self._deltas = cgutils.unpack_tuple(
            builder, operands, 7
        )
        self._scores, self._stride = cgutils.unpack_tuple(builder, scores, 2)
        probabilities, self._result_stride = cgutils.unpack_tuple(builder, probabilities, 2)
        self._d_probabilities, self._results = d_probabilities, (probabilities, d_scores)
        self._pairs = cgutils.unpack_tuple(builder, pairs, 2)
        self._limits = [broadcast_int(builder, builder.add(first, int64(i))) for i in range(2)]
        self._factors = broadcast(builder, factor, FLOAT32_VECTOR)

    def _place(self, address: Any, i: int, v: Any) -> tuple[Any, Any, Any]:
        """Return the address of a vector of bfloat16 in row `i` of a result as terms of a sum."""
        builder = self._builder
        return address, builder.mul(self._result_stride, int64(i)), builder.mul(v, int64(VECTOR_BYTES // 2))

    def _pairs_place(self, v: Any) -> Any:
        builder, per_panel, (address, stride) = self._builder, PANEL // LANES, self._pairs
        panel, part = builder.udiv(v, int64(per_panel)), builder.urem(v, int64(per_panel))
        offset = builder.add(builder.mul(panel, stride), builder.mul(part, int64(VECTOR_BYTES)))
        return pointer(builder, INT32_VECTOR, address, offset)

    def compute(self, v: Any, *, masked: bool) -> None:
        builder, (probabilities, d_scores) = self._builder, self._results
        offset = builder.mul(v, int64(VECTOR_BYTES))
        shift, delta = load_floats(builder, self._shifts, offset), load_floats(builder, self._deltas, offset)
        halves = []
        for i in range(2):
            line = builder.add(offset, builder.mul(self._stride, int64(i)))
            s, dp = load_floats(builder, self._scores, line), load_floats(builder, self._d_probabilities, line)
            p = exp2_vector(builder, fused_multiply_add(builder, s, self._factors, builder.fneg(shift)))
            ds = builder.fmul(p, builder.fsub(dp, delta))
            if masked:
                inside = builder.icmp_signed(">=", column_numbers(builder, v), self._limits[i])
                p, ds = builder.select(inside, p, _ZERO), builder.select(inside, ds, _ZERO)
            store_bf16(builder, p, *self._place(probabilities, i, v))
            half = store_bf16(builder, ds, *self._place(d_scores, i, v))
            halves.append(builder.zext(half, INT32_VECTOR))
        joined = builder.or_(halves[0], builder.shl(halves[1], int32_vector(16)))
        builder.store(joined, self._pairs_place(v), align=4)

    def clear(self, v: Any) -> None:
        builder = self._builder
        for i in range(2):
            for result in self._results:
                place = pointer(builder, INT16_VECTOR, *self._place(result, i, v))
                builder.store(ir.Constant(INT16_VECTOR, None), place, align=2)
        builder.store(ir.Constant(INT32_VECTOR, None), self._pairs_place(v), align=4)


@intrinsic
def softmax_backward_rows(typing_context: Any, operands: Any, factor: Any, first: Any, width: Any) -> Any:
    """Compute probabilities and gradients of the scores, ``p (dp - delta)``, of two successive keys.

    ``p = 2**(factor * score - shift)``, with a shift and a delta for each column, a query. Key 0 is seen by the queries
    from `first` on, key 1 from ``first + 1`` on; earlier columns become 0. `operands` is of type `SoftmaxBackwardRows`.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        operands, factor, first, width = arguments
        emit = _SoftmaxBackwardEmitter(builder, operands, factor, first)
        every = _vectors(builder, width)
        some = builder.udiv(first, int64(LANES))  # vectors that no key's queries are in
        whole = _vectors(
            builder, builder.add(first, int64(1))
        )  # vectors before the first that both keys see completely
        whole = builder.select(builder.icmp_signed(">", whole, every), every, whole)
        _for_range(builder, int64(0), some, emit.clear)
        _for_range(builder, some, whole, lambda v: emit.compute(v, masked=True))
        _for_range(builder, whole, every, lambda v: emit.compute(v, masked=False))
        return context.get_dummy_value()

    return types.void(numba_type(SoftmaxBackwardRows), types.float32, types.intp, types.intp), codegen
