"""Innermost bfloat16 product on AMX: a 32 x 32 block of the result in four tiles, with two tiles of A and two of B.

A tile is 16 rows of 64 bytes: 16 rows of 32 elements along k of A; 16 pairs of 16 columns of the packed B; 16 x 16
float32 of the result::

                       B: tile 6   tile 7       a row of a panel is 128 bytes: the halves of 16 successive rows are the
                      +---------+---------+     two tiles, at a stride of 128
           A: tile 4  | tile 0  | tile 1  |
           A: tile 5  | tile 2  | tile 3  |     each loaded tile is used twice: four products per four loads
                      +---------+---------+

The steps are a table, `LOADS` and `PRODUCTS`, with two interpreters: one emits the tile instructions; the other, for
targets without them, emits the same steps on tiles in ordinary memory, so that the schedule and every address are
tested on any machine. Only tests run it, so it is behind an address and compiled at its first call: kernels of such a
target contain no more of it than that call.

TDPBF16PS treats subnormal inputs as zero, as VDPBF16PS does.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import Entry, jit_strict_fp, jit_strict_inline, numba_type
from threadloom.kernels.matmul.operands import MatrixRef
from threadloom.kernels.simd import FLOAT32, HAS_AMX_BF16, INT8, INT32, INT64, int64, pointer

TILE_SIZE = 32
"""Rows, and columns, of the block of the result."""
K_STEP = 32
"""Elements along k of one step."""

_ROWS, _ROW_BYTES = 16, 64


class TileLoad(NamedTuple):
    """Load of tile `tile` from row `row` and byte `column` of an operand, `step` bytes further at each step of k."""

    tile: int
    operand: int  # 0: A, 1: the panel of B
    row: int
    column: int
    step: int


class TileProduct(NamedTuple):
    """Product of tiles, by number: ``result += left @ right``."""

    result: int
    left: int
    right: int


class TileResult(NamedTuple):
    """Place of a tile in the result: from row `row` and byte `column` of the 32 x 32 block."""

    tile: int
    row: int
    column: int


LOADS = (
    TileLoad(tile=4, operand=0, row=0, column=0, step=2 * K_STEP),
    TileLoad(tile=6, operand=1, row=0, column=0, step=_ROWS * 128),
    TileLoad(tile=7, operand=1, row=0, column=64, step=_ROWS * 128),
    TileLoad(tile=5, operand=0, row=16, column=0, step=2 * K_STEP),
)
PRODUCTS = (TileProduct(0, 4, 6), TileProduct(1, 4, 7), TileProduct(2, 5, 6), TileProduct(3, 5, 7))
RESULTS = (TileResult(0, 0, 0), TileResult(1, 0, 64), TileResult(2, 16, 0), TileResult(3, 16, 64))


class _Tiles:
    """Emitter of tile instructions."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def _call(self, name: str, *arguments: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self._builder.module, kind, f"llvm.x86.{name}")
        self._builder.call(function, arguments)

    def _memory(self, address: Any) -> Any:
        return self._builder.inttoptr(address, INT8.as_pointer())

    def configure(self) -> None:
        """Set every tile to 16 rows of 64 bytes: palette 1, bytes per row from byte 16, rows from byte 48."""
        builder = self._builder
        layout = [0] * 64
        layout[0] = 1
        for tile in range(8):
            layout[16 + 2 * tile], layout[48 + tile] = _ROW_BYTES, _ROWS
        kind = ir.ArrayType(INT8, 64)
        place = cgutils.alloca_once(builder, kind)
        builder.store(ir.Constant(kind, layout), place)
        self._call("ldtilecfg", builder.bitcast(place, INT8.as_pointer()))

    def release(self) -> None:
        self._call("tilerelease")

    def zero(self, tile: int) -> None:
        self._call("tilezero", ir.Constant(INT8, tile))

    def load(self, tile: int, address: Any, stride: Any) -> None:
        self._call("tileloadd64", ir.Constant(INT8, tile), self._memory(address), stride)

    def store(self, tile: int, address: Any, stride: Any) -> None:
        self._call("tilestored64", ir.Constant(INT8, tile), self._memory(address), stride)

    def product(self, result: int, left: int, right: int) -> None:
        self._call("tdpbf16ps", *(ir.Constant(INT8, tile) for tile in (result, left, right)))


class _EmulatedTiles:
    """Emitter of the same steps on eight tiles in memory; the product follows Intel's pseudocode for TDPBF16PS."""

    _tiles: list[Any]

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        kind = ir.ArrayType(INT32, _ROWS * _ROW_BYTES // 4)
        with builder.goto_entry_block():  # not `cgutils.alloca_once`, which clears: 8 KiB in each call, used or not
            tiles = [builder.alloca(kind) for _ in range(8)]
        self._tiles = [builder.ptrtoint(tile, INT64) for tile in tiles]

    def configure(self) -> None:
        """Do nothing: memory needs no configuration."""

    def release(self) -> None:
        """Do nothing."""

    def _element(self, kind: Any, tile: int, row: Any, column: Any) -> Any:
        offsets = (self._builder.mul(row, int64(_ROW_BYTES)), self._builder.mul(column, int64(4)))
        return pointer(self._builder, kind, self._tiles[tile], *offsets)

    def _each(self, tile: int, action: Any) -> None:
        builder = self._builder
        with (
            cgutils.for_range(builder, int64(_ROWS)) as rows,
            cgutils.for_range(builder, int64(_ROW_BYTES // 4)) as columns,
        ):
            action(self._element(INT32, tile, rows.index, columns.index), rows.index, columns.index)

    def _outside(self, address: Any, stride: Any, row: Any, column: Any) -> Any:
        builder = self._builder
        return pointer(builder, INT32, address, builder.mul(stride, row), builder.mul(column, int64(4)))

    def zero(self, tile: int) -> None:
        self._each(tile, lambda place, row, column: self._builder.store(ir.Constant(INT32, 0), place))

    def load(self, tile: int, address: Any, stride: Any) -> None:
        builder = self._builder
        self._each(
            tile,
            lambda place, row, column: builder.store(
                builder.load(self._outside(address, stride, row, column), align=2), place
            ),
        )

    def store(self, tile: int, address: Any, stride: Any) -> None:
        builder = self._builder
        self._each(
            tile,
            lambda place, row, column: builder.store(
                builder.load(place), self._outside(address, stride, row, column), align=4
            ),
        )

    def product(self, result: int, left: int, right: int) -> None:
        builder = self._builder

        def halves(value: Any) -> Any:
            low = builder.shl(value, ir.Constant(INT32, 16))
            high = builder.and_(value, ir.Constant(INT32, 0xFFFF0000))
            return [builder.bitcast(half, FLOAT32) for half in (low, high)]

        with cgutils.for_range(builder, int64(_ROWS)) as rows, cgutils.for_range(builder, int64(16)) as pairs:
            factors = halves(builder.load(self._element(INT32, left, rows.index, pairs.index)))
            with cgutils.for_range(builder, int64(16)) as columns:
                place = self._element(FLOAT32, result, rows.index, columns.index)
                total = builder.load(place)
                others = halves(builder.load(self._element(INT32, right, pairs.index, columns.index)))
                for factor, other in zip(factors, others, strict=True):
                    total = builder.fadd(total, builder.fmul(factor, other))
                builder.store(total, place)


@intrinsic
def configure_tiles(typing_context: Any) -> Any:
    """Configure this thread's tiles; `release_tiles` must follow before the thread leaves the kernel."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if HAS_AMX_BF16:
            _Tiles(builder).configure()
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def release_tiles(typing_context: Any) -> Any:
    """Release this thread's tiles, so that the system need not save 8 KiB at each context switch."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if HAS_AMX_BF16:
            _Tiles(builder).release()
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _tile(typing_context: Any, a: Any, panel: Any, steps: Any, out: Any, accumulate: Any) -> Any:
    """Write the product of 32 rows of `a` and the panel at an address along ``32 * steps`` elements to `out`, 32 x 32.

    If `accumulate` is not 0, it is added instead. `a` and `out` are of type `MatrixRef`. The tiles must be
    configured.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_ref, panel, steps, out_ref, accumulate = arguments
        (a, row_bytes), (out, out_bytes) = (cgutils.unpack_tuple(builder, ref, 2) for ref in (a_ref, out_ref))
        machine = _Tiles(builder) if HAS_AMX_BF16 else _EmulatedTiles(builder)
        starts, strides = (a, panel), (row_bytes, int64(128))

        def place(result: TileResult) -> Any:
            return builder.add(out, builder.add(builder.mul(out_bytes, int64(result.row)), int64(result.column)))

        with builder.if_else(builder.icmp_signed("!=", accumulate, int64(0))) as (then, otherwise):
            with then:
                for result in RESULTS:
                    machine.load(result.tile, place(result), out_bytes)
            with otherwise:
                for result in RESULTS:
                    machine.zero(result.tile)
        with cgutils.for_range(builder, steps) as loop:
            for load in LOADS:
                stride = strides[load.operand]
                offset = builder.add(builder.mul(stride, int64(load.row)), int64(load.column))
                along_k = builder.mul(loop.index, int64(load.step))
                machine.load(load.tile, builder.add(builder.add(starts[load.operand], offset), along_k), stride)
            for product in PRODUCTS:
                machine.product(*product)
        for result in RESULTS:
            machine.store(result.tile, place(result), out_bytes)
        return context.get_dummy_value()

    matrix = numba_type(MatrixRef)
    return types.void(matrix, types.intp, types.intp, matrix, types.intp), codegen


class _TileArgs(NamedTuple):
    """Arguments of `tile_amx`."""

    a: MatrixRef
    panel: int
    steps: int
    out: MatrixRef
    accumulate: int


@jit_strict_fp
def _run_emulated(p: _TileArgs) -> None:
    _tile(p.a, p.panel, p.steps, p.out, p.accumulate)


@jit_strict_inline
def _call_emulated(a: MatrixRef, panel: int, steps: int, out: MatrixRef, accumulate: int) -> None:
    """Do the same as `tile_amx` with emulated tiles."""
    _call(_TileArgs(a, panel, steps, out, accumulate))


_EMULATED = Entry("threadloom_emulated_tile", _run_emulated, _TileArgs, prepares_itself=True)
_call = _EMULATED.call

tile_amx = _tile if HAS_AMX_BF16 else _call_emulated
"""Product of 32 rows of A and a panel, added to a block of the result: tile instructions, or a call of emulated ones.

``tile_amx(a, panel, steps, out, accumulate)``, in compiled code only; see `_tile`.
"""
