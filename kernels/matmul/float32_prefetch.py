"""Prefetching for the float32 product: the tile of the result, and the next panel of B, a few lines at each tile."""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import jit_kernel
from threadloom.kernels.matmul.float32_tile import WIDTH
from threadloom.kernels.matmul.operands import GemmArgs, MatrixRef, Op
from threadloom.kernels.simd import INT8, INT32, prefetch

_LINE = 64
_LINES = 4 * WIDTH // _LINE  # cache lines of a row of a tile


def _prefetcher(for_writing: bool) -> Any:
    @intrinsic
    def fetch(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if for_writing:
                prefetch(builder, arguments[0])
            else:  # other threads read the same line of B: it must not be taken from them
                kind = ir.FunctionType(ir.VoidType(), [INT8.as_pointer(), INT32, INT32, INT32])
                function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
                place = builder.inttoptr(arguments[0], INT8.as_pointer())
                builder.call(function, [place, *(ir.Constant(INT32, number) for number in (0, 2, 1))])  # to L2
            return context.get_dummy_value()

        return types.void(types.intp), codegen

    return fetch


_fetch_to_write, _fetch_to_read = _prefetcher(for_writing=True), _prefetcher(for_writing=False)


class NextPanel(NamedTuple):
    """Panel of B that is multiplied next, and the share of it that each tile prefetches."""

    address: int
    stride: int  # bytes from row to row as it is stored
    rows: int  # as it is stored; 0: there is none
    lines: int  # cache lines of a row
    share: int  # rows


@jit_kernel
def next_panel(p: GemmArgs, k0: int, depth: int, j0: int, columns1: int, tiles: int) -> NextPanel:
    """Return the full panel at column `j0`, if it ends before `columns1`, for `tiles` tiles to prefetch."""
    there = j0 + WIDTH <= columns1
    if p.op_b == Op.T:
        rows, lines, address = WIDTH, -(-4 * depth // _LINE), p.b.address + j0 * p.b.stride + 4 * k0
    else:
        rows, lines, address = depth, _LINES, p.b.address + k0 * p.b.stride + 4 * j0
    return NextPanel(address, p.b.stride, rows if there else 0, lines, -(-rows // tiles))


@jit_kernel
def fetch_for_tile(target: MatrixRef, height: int, following: NextPanel, index: int) -> None:
    """Prefetch the rows of a tile of the result, which are far apart, and its share of the next panel."""
    for i in range(height):
        for line in range(_LINES):
            _fetch_to_write(target.address + i * target.stride + _LINE * line)
    first = index * following.share
    for row in range(first, min(first + following.share, following.rows)):
        for line in range(following.lines):
            _fetch_to_read(following.address + row * following.stride + _LINE * line)
