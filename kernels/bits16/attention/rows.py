"""The passes over rows of scores of attention in bfloat16, as LLVM vectors: softmax, gradients of scores, rounding.

Numba's own loops would use half-wide vectors on some processors with AVX-512, and one pass for each operation. Here the
exponential, the rounding and the sums are one pass, four or two rows at a time, so that their chains overlap. The
exponential is a power of two: the scale of the scores and log2(e) are one factor, and the reduction is a subtraction.

Addresses and strides count bytes. Vectors reach past a row's end by less than `PADDING` elements.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from threadloom.kernels.matmul import PANEL
from threadloom.kernels.simd import (
    FLOAT32_VECTOR,
    HAS_AVX512_BF16,
    INT16_VECTOR,
    INT32,
    INT32_VECTOR,
    LANES,
    Bfloat,
    broadcast,
    fused_multiply_add,
    int64,
    pointer,
    round_vector,
    upcast_even,
    upcast_odd,
)

PADDING = 2 * LANES
"""Elements after the end of a row of scratch that may be read and written."""
ROW_GROUP = 4
"""Rows that `softmax_rows` takes at a time."""

_VECTOR_BYTES = 4 * LANES
_BIT = ir.IntType(1)

# 2**f = 1 + f (c0 + f (c1 + ...)) for |f| <= 1/2, to a relative error of 9.2e-8: found by reweighted least squares.
_POWERS = (0.6931469775973306, 0.24022242082675874, 0.055507337448247575, 0.009671512812595753, 0.001326472721392479)
_ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
_LOWEST = -126.0  # below it the power of two would not be a normal number


def _floats(value: float) -> Any:
    return ir.Constant(FLOAT32_VECTOR, [float(value)] * LANES)


def _ints(value: int) -> Any:
    return ir.Constant(INT32_VECTOR, [value] * LANES)


def _load_floats(builder: Any, *address: Any) -> Any:
    return builder.load(pointer(builder, FLOAT32_VECTOR, *address), align=4)


def _exp2(builder: Any, x: Any) -> Any:
    """Return 2**x for x up to 127, not below 2**-126; NaN stays NaN."""
    y = builder.select(builder.fcmp_ordered("<", x, _floats(_LOWEST)), _floats(_LOWEST), x)
    t = builder.fadd(y, _floats(_ROUNDER))
    f = builder.fsub(y, builder.fsub(t, _floats(_ROUNDER)))
    p = _floats(_POWERS[-1])
    for coefficient in _POWERS[-2::-1]:
        p = fused_multiply_add(builder, p, f, _floats(coefficient))
    p = fused_multiply_add(builder, p, f, _floats(1.0))
    power = builder.add(builder.shl(builder.bitcast(t, INT32_VECTOR), _ints(23)), _ints(0x3F800000))
    return builder.fmul(p, builder.bitcast(power, FLOAT32_VECTOR))


def _round(builder: Any, x: Any) -> Any:
    """Return the nearest bfloat16 numbers as shorts; where there is an instruction, subnormal numbers become zero."""
    if not HAS_AVX512_BF16 or LANES != 16:
        return round_vector(builder, x)
    result = ir.VectorType(Bfloat(), LANES)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [FLOAT32_VECTOR]), f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * LANES}"
    )
    return builder.bitcast(builder.call(function, [x]), INT16_VECTOR)


def _lanes(builder: Any, first: Any) -> Any:
    """Return the numbers of a vector's elements, the first of which is `first`, a word."""
    start = broadcast(builder, builder.trunc(first, INT32), INT32_VECTOR)
    return builder.add(start, ir.Constant(INT32_VECTOR, list(range(LANES))))


def _across(builder: Any, x: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Reduce a vector's lanes to one number."""
    distance = LANES // 2
    while distance:
        mask = ir.Constant(INT32_VECTOR, [(lane + distance) % LANES for lane in range(LANES)])
        x = join(x, builder.shuffle_vector(x, x, mask))
        distance //= 2
    return builder.extract_element(x, ir.Constant(INT32, 0))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger, `b` where one is NaN: what one instruction does. A NaN shows in the exponentials anyway."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def softmax_rows(
    typing_context: Any,
    scores: Any,
    score_bytes: Any,
    bits: Any,
    bit_bytes: Any,
    seen: Any,
    width: Any,
    factor: Any,
    largest: Any,
    totals: Any,
) -> Any:
    """Turn `ROW_GROUP` rows of scores into exponentials, rounded to `bits`: ``2**(factor * (score - largest))``.

    Row i sees the first ``seen + i`` scores; what follows, up to `width`, becomes 0. Each row's largest score and the
    sum of its exponentials, before they are rounded, go to `largest` and `totals`. `factor` is positive.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, score_bytes, bits, bit_bytes, seen, width, factor, largest, totals = arguments
        rows = range(ROW_GROUP)
        lines = [builder.add(scores, builder.mul(score_bytes, int64(i))) for i in rows]
        targets = [builder.add(bits, builder.mul(bit_bytes, int64(i))) for i in rows]
        limits = [broadcast(builder, builder.trunc(builder.add(seen, int64(i)), INT32), INT32_VECTOR) for i in rows]
        whole = builder.udiv(seen, int64(LANES))
        some = builder.udiv(builder.add(seen, int64(ROW_GROUP - 1 + LANES - 1)), int64(LANES))
        every = builder.udiv(builder.add(width, int64(LANES - 1)), int64(LANES))
        lowest, zero = ir.Constant(FLOAT32_VECTOR, [float("-inf")] * LANES), ir.Constant(FLOAT32_VECTOR, None)
        highest = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in rows]
        sums = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in rows]
        for i in rows:
            builder.store(lowest, highest[i])
            builder.store(zero, sums[i])

        def find(v: Any, masked: bool) -> None:
            for i in rows:
                x = _load_floats(builder, lines[i], builder.mul(v, int64(_VECTOR_BYTES)))
                if masked:
                    inside = builder.icmp_signed("<", _lanes(builder, builder.mul(v, int64(LANES))), limits[i])
                    x = builder.select(inside, x, lowest)
                builder.store(_larger(builder, x, builder.load(highest[i])), highest[i])

        with cgutils.for_range_slice(builder, int64(0), whole, int64(1)) as (v, _):
            find(v, False)
        with cgutils.for_range_slice(builder, whole, some, int64(1)) as (v, _):
            find(v, True)
        factors = broadcast(builder, factor, FLOAT32_VECTOR)
        shifts = []
        for i in rows:
            top = _across(builder, builder.load(highest[i]), lambda a, b: _larger(builder, a, b))
            builder.store(top, pointer(builder, ir.FloatType(), largest, int64(4 * i)))
            shifts.append(builder.fneg(builder.fmul(broadcast(builder, top, FLOAT32_VECTOR), factors)))

        def exponentiate(v: Any, masked: bool) -> None:
            for i in rows:
                x = _load_floats(builder, lines[i], builder.mul(v, int64(_VECTOR_BYTES)))
                e = _exp2(builder, fused_multiply_add(builder, x, factors, shifts[i]))
                if masked:
                    inside = builder.icmp_signed("<", _lanes(builder, builder.mul(v, int64(LANES))), limits[i])
                    e = builder.select(inside, e, zero)
                builder.store(builder.fadd(builder.load(sums[i]), e), sums[i])
                place = pointer(builder, INT16_VECTOR, targets[i], builder.mul(v, int64(2 * LANES)))
                builder.store(_round(builder, e), place, align=2)

        with cgutils.for_range_slice(builder, int64(0), whole, int64(1)) as (v, _):
            exponentiate(v, False)
        with cgutils.for_range_slice(builder, whole, some, int64(1)) as (v, _):
            exponentiate(v, True)
        with cgutils.for_range_slice(builder, some, every, int64(1)) as (v, _):
            for i in rows:
                place = pointer(builder, INT16_VECTOR, targets[i], builder.mul(v, int64(2 * LANES)))
                builder.store(ir.Constant(INT16_VECTOR, None), place, align=2)
        for i in rows:
            total = _across(builder, builder.load(sums[i]), builder.fadd)
            builder.store(total, pointer(builder, ir.FloatType(), totals, int64(4 * i)))
        return context.get_dummy_value()

    word_type = types.intp
    return types.void(*[word_type] * 6, types.float32, word_type, word_type), codegen


@intrinsic
def d_score_rows(
    typing_context: Any,
    scores: Any,
    d_scores: Any,
    score_bytes: Any,
    p_bits: Any,
    ds_bits: Any,
    bit_bytes: Any,
    words: Any,
    panel_bytes: Any,
    shifts: Any,
    deltas: Any,
    factor: Any,
    first: Any,
    width: Any,
) -> Any:
    """Turn two rows, of two successive keys, into probabilities and gradients of scores: ``p (dp - delta)``.

    ``p = 2**(factor * score - shift)``, with a shift and a delta for each column, a query. Key 0 is seen by the queries
    from `first` on, key 1 from the next one on; before, both results are 0. They are rounded to rows of bits, and the
    gradients, as pairs of keys, to a row of `words` in the packed form.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, d_scores, score_bytes, p_bits, ds_bits, bit_bytes = arguments[:6]
        words, panel_bytes, shifts, deltas, factor, first, width = arguments[6:]
        limits = [
            broadcast(builder, builder.trunc(builder.add(first, int64(i)), INT32), INT32_VECTOR) for i in range(2)
        ]
        factors = broadcast(builder, factor, FLOAT32_VECTOR)
        zero = ir.Constant(FLOAT32_VECTOR, None)
        per_panel = PANEL // LANES

        def packed_place(v: Any) -> Any:
            panel, part = builder.udiv(v, int64(per_panel)), builder.urem(v, int64(per_panel))
            offset = builder.add(builder.mul(panel, panel_bytes), builder.mul(part, int64(_VECTOR_BYTES)))
            return pointer(builder, INT32_VECTOR, words, offset)

        def row_place(row: Any, i: int, v: Any) -> Any:
            return pointer(
                builder, INT16_VECTOR, row, builder.mul(bit_bytes, int64(i)), builder.mul(v, int64(2 * LANES))
            )

        def make(v: Any, masked: bool) -> None:
            offset = builder.mul(v, int64(_VECTOR_BYTES))
            shift, delta = _load_floats(builder, shifts, offset), _load_floats(builder, deltas, offset)
            halves = []
            for i in range(2):
                line = builder.add(offset, builder.mul(score_bytes, int64(i)))
                s, dp = _load_floats(builder, scores, line), _load_floats(builder, d_scores, line)
                p = _exp2(builder, fused_multiply_add(builder, s, factors, builder.fneg(shift)))
                ds = builder.fmul(p, builder.fsub(dp, delta))
                if masked:
                    inside = builder.icmp_signed(">=", _lanes(builder, builder.mul(v, int64(LANES))), limits[i])
                    p, ds = builder.select(inside, p, zero), builder.select(inside, ds, zero)
                builder.store(_round(builder, p), row_place(p_bits, i, v), align=2)
                half = _round(builder, ds)
                builder.store(half, row_place(ds_bits, i, v), align=2)
                halves.append(builder.zext(half, INT32_VECTOR))
            joined = builder.or_(halves[0], builder.shl(halves[1], _ints(16)))
            builder.store(joined, packed_place(v), align=4)

        some = builder.udiv(first, int64(LANES))
        whole = builder.udiv(builder.add(first, int64(1 + LANES - 1)), int64(LANES))
        every = builder.udiv(builder.add(width, int64(LANES - 1)), int64(LANES))
        late = builder.icmp_signed(">", whole, every)
        whole = builder.select(late, every, whole)
        with cgutils.for_range_slice(builder, int64(0), some, int64(1)) as (v, _):
            for i in range(2):
                builder.store(ir.Constant(INT16_VECTOR, None), row_place(p_bits, i, v), align=2)
                builder.store(ir.Constant(INT16_VECTOR, None), row_place(ds_bits, i, v), align=2)
            builder.store(ir.Constant(INT32_VECTOR, None), packed_place(v), align=4)
        with cgutils.for_range_slice(builder, some, whole, int64(1)) as (v, _):
            make(v, True)
        with cgutils.for_range_slice(builder, whole, every, int64(1)) as (v, _):
            make(v, False)
        return context.get_dummy_value()

    word_type = types.intp
    return types.void(*[word_type] * 10, types.float32, word_type, word_type), codegen


@intrinsic
def dot_columns(typing_context: Any, a: Any, b: Any, pairs: Any, out: Any) -> Any:
    """Write the dot product of each column of a panel `a` with that of `b` to `out`, `PANEL` floats."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, pairs, out = arguments
        slots = [cgutils.alloca_once(builder, FLOAT32_VECTOR) for _ in range(PANEL // LANES)]
        for slot in slots:
            builder.store(ir.Constant(FLOAT32_VECTOR, None), slot)
        with cgutils.for_range(builder, pairs) as loop:
            for v, slot in enumerate(slots):
                offset = builder.add(builder.mul(loop.index, int64(4 * PANEL)), int64(v * _VECTOR_BYTES))
                x, y = (builder.load(pointer(builder, INT32_VECTOR, base, offset), align=4) for base in (a, b))
                total = builder.load(slot)
                for half in (upcast_even, upcast_odd):
                    total = fused_multiply_add(builder, half(builder, x), half(builder, y), total)
                builder.store(total, slot)
        for v, slot in enumerate(slots):
            builder.store(builder.load(slot), pointer(builder, FLOAT32_VECTOR, out, int64(v * _VECTOR_BYTES)), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), codegen


@intrinsic
def round_row(typing_context: Any, source: Any, factor: Any, out: Any, vectors: Any) -> Any:
    """Write ``factor * source``, so many vectors of floats, to `out` as bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, factor, out, vectors = arguments
        factors = broadcast(builder, factor, FLOAT32_VECTOR)
        with cgutils.for_range(builder, vectors) as loop:
            x = _load_floats(builder, source, builder.mul(loop.index, int64(_VECTOR_BYTES)))
            place = pointer(builder, INT16_VECTOR, out, builder.mul(loop.index, int64(2 * LANES)))
            builder.store(_round(builder, builder.fmul(x, factors)), place, align=2)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32, types.intp, types.intp), codegen


@intrinsic
def join_short_rows(typing_context: Any, even: Any, odd: Any, target: Any) -> Any:
    """Make `LANES` words at `target` of as many shorts at `even` and at `odd`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        even, odd, target = arguments
        low, high = (
            builder.zext(builder.load(pointer(builder, INT16_VECTOR, row), align=2), INT32_VECTOR)
            for row in (even, odd)
        )
        builder.store(builder.or_(low, builder.shl(high, _ints(16))), pointer(builder, INT32_VECTOR, target), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@intrinsic
def fetch_row(typing_context: Any, address: Any, size: Any, write: Any) -> Any:
    """Ask for the cache lines of `size` bytes at an address, to read or to write (a constant); none need be there.

    A head's rows lie as far apart as the matrix is wide, which the processor's own prefetching does not foresee.
    """
    if not isinstance(write, types.Literal):
        raise RequireLiteralValue("write must be a constant")

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size, _ = arguments
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(INT32, value) for value in (int(write.literal_value), 2, 1)]
        with cgutils.for_range_slice(builder, int64(0), size, int64(64)) as (offset, _):
            builder.call(function, [pointer(builder, ir.IntType(8), address, offset), *hints])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, write), codegen
