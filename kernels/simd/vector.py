"""LLVM building blocks of hand-written vector code: IR types, loads and stores at addresses, transposes, dot products.

A matrix of bfloat16 is a NumPy array of uint16, since NumPy has no such type. Two elements that are adjacent along the
summed dimension k form one uint32, a pair, with the even k in the low half::

    bits 31 ........ 16 15 ........ 0
         k = 2p + 1       k = 2p

LLVM's intrinsics take vectors of its type ``bfloat``, which llvmlite does not define; `Bfloat` adds its name.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import TARGET

HAS_AVX512_BF16 = TARGET.get("avx512bf16", False) and TARGET.get("avx512f", False)
HAS_AMX_BF16 = TARGET.get("amx-bf16", False) and TARGET.get("amx-tile", False)
HAS_AVX2 = TARGET.get("avx2", False) and TARGET.get("fma", False)
HAS_F16C = TARGET.get("f16c", False)
LANES = 16 if TARGET.get("avx512f", False) else 8
"""32-bit lanes of the target's vectors."""


class Bfloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's type bfloat."""

    null = "0.0"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat)

    def __hash__(self) -> int:
        return hash(Bfloat)


INT8, INT16, INT32, INT64, FLOAT32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOAT32_VECTOR = ir.VectorType(FLOAT32, LANES)
INT32_VECTOR = ir.VectorType(INT32, LANES)
INT16_VECTOR = ir.VectorType(INT16, LANES)
BF16_VECTOR = ir.VectorType(Bfloat(), 2 * LANES)


def int64(value: int) -> Any:
    """Return a 64-bit constant."""
    return ir.Constant(INT64, value)


def int32_vector(value: Any) -> Any:
    """Return the constant vector with an integer in every lane."""
    return ir.Constant(INT32_VECTOR, [int(value)] * LANES)


def float32_vector(value: Any) -> Any:
    """Return the constant vector with a float in every lane."""
    return ir.Constant(FLOAT32_VECTOR, [float(value)] * LANES)


def pointer(builder: Any, kind: Any, base: Any, *offsets: Any) -> Any:
    """Return a pointer to a `kind` at the address `base` plus the offsets, all in bytes."""
    for offset in offsets:
        base = builder.add(base, offset)
    return builder.inttoptr(base, kind.as_pointer())


def prefetch(builder: Any, address: Any) -> None:
    """Prefetch the cache line at `address` for writing; an address that is not mapped has no effect."""
    kind = ir.FunctionType(ir.VoidType(), [INT8.as_pointer(), INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    place = builder.inttoptr(address, INT8.as_pointer())
    builder.call(function, [place, ir.Constant(INT32, 1), ir.Constant(INT32, 3), ir.Constant(INT32, 1)])


def broadcast(builder: Any, value: Any, kind: Any) -> Any:
    """Return the vector of type `kind` with `value` in every lane."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(INT32, kind.count), None))


def fused_multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c."""
    kind = ir.FunctionType(FLOAT32_VECTOR, [FLOAT32_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32"), [a, b, c])


def dot_pairs(builder: Any, a: Any, b: Any, total: Any, native: bool) -> Any:
    """Return `total` plus, in each lane, the dot product of the pairs of bfloat16 in `a` and `b`.

    With `native` it is the instruction VDPBF16PS, which treats subnormal inputs as zero and rounds after each addition.
    Otherwise both elements of a pair are upcast to float32, by a shift and a mask, and multiplied as such.
    """
    if native:
        kind = ir.FunctionType(FLOAT32_VECTOR, [FLOAT32_VECTOR, BF16_VECTOR, BF16_VECTOR])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [total, builder.bitcast(a, BF16_VECTOR), builder.bitcast(b, BF16_VECTOR)])
    for half in (upcast_even, upcast_odd):
        total = fused_multiply_add(builder, half(builder, a), half(builder, b), total)
    return total


def upcast_even(builder: Any, pairs: Any) -> Any:
    """Return the even elements of pairs as float32."""
    return builder.bitcast(builder.shl(pairs, int32_vector(16)), FLOAT32_VECTOR)


def upcast_odd(builder: Any, pairs: Any) -> Any:
    """Return the odd elements of pairs as float32."""
    return builder.bitcast(builder.and_(pairs, int32_vector(0xFFFF0000)), FLOAT32_VECTOR)


def rounded_bits(builder: Any, x: Any) -> Any:
    """Return the bits of a float32 vector, rounded so that the upper halves are the nearest bfloat16; not for NaN.

    Rounds to nearest, ties to even, as `kernels.simd.bfloat16.to_bf16`; the lower halves are undefined.
    """
    bits = builder.bitcast(x, INT32_VECTOR)
    odd = builder.and_(builder.lshr(bits, int32_vector(16)), int32_vector(1))
    return builder.add(builder.add(bits, int32_vector(0x7FFF)), odd)


def round_vector(builder: Any, x: Any) -> Any:
    """Return the bfloat16 numbers nearest to a float32 vector as a vector of int16, as `kernels.simd.bfloat16` does."""
    quiet = builder.or_(builder.lshr(builder.bitcast(x, INT32_VECTOR), int32_vector(16)), int32_vector(0x40))
    nearest = builder.lshr(rounded_bits(builder, x), int32_vector(16))
    is_nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(is_nan, quiet, nearest), INT16_VECTOR)


def round_result(builder: Any, x: Any) -> Any:
    """Return `round_vector` of results of arithmetic, by an instruction if there is one: it flushes subnormals."""
    if not HAS_AVX512_BF16:
        return round_vector(builder, x)
    kind = ir.FunctionType(ir.VectorType(Bfloat(), LANES), [FLOAT32_VECTOR])
    name = f"llvm.x86.avx512bf16.cvtneps2bf16.{32 * LANES}"
    return builder.bitcast(builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x]), INT16_VECTOR)


def stack_buffer(size: int) -> Any:
    """Return an intrinsic that returns the address of `size` bytes on its caller's stack, aligned to 64 bytes."""

    @intrinsic
    def buffer(typing_context: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(INT8, size))
                memory.align = 64
            return builder.ptrtoint(memory, INT64)

        return types.intp(), codegen

    return buffer


def _loader(kind: Any, numba_type: Any) -> Any:
    """Return an intrinsic that loads element `index` of an array of `kind` at an address."""

    @intrinsic
    def load(typing_context: Any, base: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, index = arguments
            return builder.load(builder.gep(builder.inttoptr(base, kind.as_pointer()), [index]))

        return numba_type(types.intp, types.intp), codegen

    return load


def _storer(kind: Any, numba_type: Any) -> Any:
    """Return an intrinsic that stores element `index` of an array of `kind` at an address."""

    @intrinsic
    def store(typing_context: Any, base: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, index, value = arguments
            builder.store(value, builder.gep(builder.inttoptr(base, kind.as_pointer()), [index]))
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, numba_type), codegen

    return store


load_float32, store_float32 = _loader(FLOAT32, types.float32), _storer(FLOAT32, types.float32)
load_uint16, store_uint16 = _loader(INT16, types.uint16), _storer(INT16, types.uint16)
load_uint32, store_uint32 = _loader(INT32, types.uint32), _storer(INT32, types.uint32)


def exchange_lanes(builder: Any, rows: list[Any]) -> list[Any]:
    """Transpose a square held in vectors of as many lanes, a power of two, by an exchange network.

    In round d each pair of rows (i, i + d) swaps the lanes in which bit d of the lane and of the row differ.
    """
    size = len(rows)
    distance = size // 2
    while distance:
        keep = [lane if not lane & distance else size + lane - distance for lane in range(size)]
        swap = [lane + distance if not lane & distance else size + lane for lane in range(size)]
        masks = [ir.Constant(ir.VectorType(INT32, size), lanes) for lanes in (keep, swap)]
        for i in range(size):
            if not i & distance:
                low, high = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = (builder.shuffle_vector(low, high, mask) for mask in masks)
        distance //= 2
    return rows


def _transposer(interleaves: bool) -> Any:
    """Return an intrinsic that transposes `LANES` x `LANES` elements of 32 bits; strides between rows are in bytes.

    With `interleaves` the elements are 16 bits wide: 2 * `LANES` rows of `LANES` become `LANES` rows of 2 * `LANES`,
    after two successive rows were interleaved into one of 32-bit elements.
    """

    @intrinsic
    def transpose(typing_context: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source, source_stride, target, target_stride = arguments

            def row(i: int, kind: Any) -> Any:
                place = pointer(builder, kind, source, builder.mul(source_stride, int64(i)))
                return builder.load(place, align=2)

            if interleaves:
                shift = int32_vector(16)
                narrow = [builder.zext(row(i, INT16_VECTOR), INT32_VECTOR) for i in range(2 * LANES)]
                rows = [builder.or_(narrow[i], builder.shl(narrow[i + 1], shift)) for i in range(0, 2 * LANES, 2)]
            else:
                rows = [row(i, INT32_VECTOR) for i in range(LANES)]
            for i, value in enumerate(exchange_lanes(builder, rows)):
                place = pointer(builder, INT32_VECTOR, target, builder.mul(target_stride, int64(i)))
                builder.store(value, place, align=2)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), codegen

    return transpose


@intrinsic
def interleave_rows(typing_context: Any, even: Any, odd: Any, target: Any) -> Any:
    """Store 32 pairs at `target` from 32 elements of 16 bits at `even` and 32 at `odd`, all addresses."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        even, odd, target = arguments
        shift = int32_vector(16)
        for v in range(0, 32, LANES):
            low, high = (
                builder.zext(builder.load(pointer(builder, INT16_VECTOR, row, int64(2 * v)), align=2), INT32_VECTOR)
                for row in (even, odd)
            )
            place = pointer(builder, INT32_VECTOR, target, int64(4 * v))
            builder.store(builder.or_(low, builder.shl(high, shift)), place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


transpose_uint32 = _transposer(interleaves=False)
transpose_uint16 = _transposer(interleaves=True)
