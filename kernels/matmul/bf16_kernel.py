"""The compiled kernel of `kernels.matmul.bf16`: blocks, panels, tiles, and the epilogue of one bfloat16 product.

Blocking: each panel of B, 32 columns, is multiplied by a block of rows of A that stays in the L2 cache, tile after
tile; sums longer than `_DEPTH` are split there if the result is float32. Within a row nothing depends on how the other
rows are split, except that AMX computes the rows and the part of k that fill its tiles and AVX-512 the rest; all of it
follows from the shapes alone, so the bits are the same in any thread.

A second product, ``a2 @ b2``, is added to the float32 sums of a tile before they leave the cache. It is meant for short
sums (the adapters of LoRA) and is not split.
"""

from enum import IntEnum
from typing import NamedTuple

from threadloom.kernels.compiling import Entry, jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul.amx import K_STEP, TILE_SIZE, configure_tiles, release_tiles, tile_amx
from threadloom.kernels.matmul.epilogue import finish_gelu, finish_rounded
from threadloom.kernels.matmul.operands import MatrixRef, shifted
from threadloom.kernels.matmul.pack import PANEL, pack_panel
from threadloom.kernels.matmul.tile import TILE_COLUMNS, TILE_ROWS, tile_avx512, tile_float32
from threadloom.kernels.simd import (
    DotPath,
    load_float32,
    load_uint16,
    stack_buffer,
    store_float32,
    store_uint16,
)

_DEPTH = 4096  # longest sum in one pass: its panel is 256 KiB, a part of the L2 cache
_STACK_DEPTH = 512  # the same if B is packed on the fly, panel by panel: 32 KiB of the L1 cache and of the stack
_BLOCK = 1 << 18  # elements of A multiplied by all panels before the next ones: 512 KiB of the L2 cache

_tile_buffer = stack_buffer(TILE_SIZE * PANEL * 4)
_bias_buffer = stack_buffer(PANEL * 4)
_panel_buffer = stack_buffer(_STACK_DEPTH * PANEL * 2)
_edge_buffer = stack_buffer(2 * TILE_SIZE * PANEL * 2)


class Epilogue(IntEnum):
    """Last step of a product, from the float32 sums to the result."""

    WRITE = 0  # write them; the result is float32
    ADD = 1  # add them to the result, float32
    ROUND = 2  # add the bias and round to bfloat16
    GELU = 3  # the same, then apply the GELU to the rounded numbers


class Bf16GemmArgs(NamedTuple):
    """Arguments of one product ``out = epilogue(a @ b + a2 @ b2)``."""

    a: MatrixRef  # (rows, inner) bfloat16
    b: MatrixRef  # (inner, columns) bfloat16; if packed, the stride is that between panels
    packed: bool
    a2: MatrixRef  # (rows, inner2) bfloat16
    b2: MatrixRef  # (inner2, columns) bfloat16, packed
    inner2: int  # 0: there is no second product
    out: MatrixRef  # (rows, columns) float32 or bfloat16
    rows: int
    columns: int
    inner: int
    epilogue: Epilogue
    bias: int  # address of (columns,) float32; 0: none
    pre_gelu: MatrixRef  # (rows, columns) bfloat16, the input of the GELU; written by Epilogue.GELU alone
    path: int  # a `DotPath`


class _Bf16Buffers(NamedTuple):
    """Addresses of the product's buffers on the stack."""

    tile: int  # float32 sums that are not written straight into the result
    bias: int  # of a panel's columns, padded with zeros
    edges: int  # two bfloat16 tiles
    panel: int  # of B, if it is packed on the fly


class _Panel(NamedTuple):
    """Panel of B that is multiplied now."""

    address: int
    k0: int  # first row of B in it
    inner: int  # rows of B in it
    j0: int  # first column
    width: int  # columns
    second: int  # address of the panel of B2 with these columns; 0: no second product is added to these sums


@jit_strict_fp
def _multiply_rows(
    path: int, a: MatrixRef, height: int, panel: int, inner: int, out: MatrixRef, accumulate: int
) -> None:
    """Multiply up to `TILE_ROWS` rows by a panel. All `TILE_ROWS` x 32 floats of `out` are written."""
    for column in range(0, PANEL, TILE_COLUMNS):
        part, target = panel + 4 * column, MatrixRef(out.address + 4 * column, out.stride)
        if path >= DotPath.AVX512:
            tile_avx512(a, height - 1, part, inner, target, accumulate)
        else:
            tile_float32(a, height - 1, part, inner, target, accumulate)


@jit_strict_fp
def _merge(tile: int, out: MatrixRef, height: int, width: int, adds: bool) -> None:
    """Write, or add, the part of a tile that is inside a float32 result."""
    for i in range(height):
        source, target = tile + 4 * PANEL * i, out.address + i * out.stride
        if adds:
            for j in range(width):
                store_float32(target, j, load_float32(target, j) + load_float32(source, j))
        else:
            for j in range(width):
                store_float32(target, j, load_float32(source, j))


@jit_strict_fp
def _copy_bits(source: MatrixRef, target: MatrixRef, height: int, width: int) -> None:
    for i in range(height):
        line, place = source.address + i * source.stride, target.address + i * target.stride
        for j in range(width):
            store_uint16(place, j, load_uint16(line, j))


@jit_strict_fp
def _finish(p: Bf16GemmArgs, buffers: _Bf16Buffers, i0: int, j0: int, height: int, width: int) -> None:
    """Apply the epilogue to a tile of sums and round it into the result.

    At the right edge this is done in the two tiles of ``buffers.edges``, because vectors would reach past the arrays.
    """
    out, pre_gelu = shifted(p.out, i0, 2 * j0), shifted(p.pre_gelu, i0, 2 * j0)
    to_out, to_pre_gelu = out, pre_gelu
    if width < PANEL:
        to_out, to_pre_gelu = (
            MatrixRef(buffers.edges, 2 * PANEL),
            MatrixRef(buffers.edges + TILE_SIZE * 2 * PANEL, 2 * PANEL),
        )
    if p.epilogue == Epilogue.ROUND:
        finish_rounded(buffers.tile, height, buffers.bias, to_pre_gelu, to_out)
    else:
        finish_gelu(buffers.tile, height, buffers.bias, to_pre_gelu, to_out)
    if width < PANEL:
        _copy_bits(to_out, out, height, width)
        if p.epilogue == Epilogue.GELU:
            _copy_bits(to_pre_gelu, pre_gelu, height, width)


@jit_strict_inline
def _find_panel(p: Bf16GemmArgs, buffers: _Bf16Buffers, k0: int, inner: int, j0: int) -> _Panel:
    """Return the panel, packed if necessary; write its bias, if the epilogue adds one, to ``buffers.bias``."""
    width = min(PANEL, p.columns - j0)
    if p.epilogue >= Epilogue.ROUND:
        for j in range(PANEL):
            store_float32(buffers.bias, j, load_float32(p.bias + 4 * j0, j) if p.bias != 0 and j < width else 0.0)
    second = 0
    if p.inner2 > 0 and k0 + inner == p.inner:  # with the last part of the sums
        second = p.b2.address + j0 // PANEL * p.b2.stride
    if p.packed:
        address = p.b.address + j0 // PANEL * p.b.stride + k0 // 2 * (4 * PANEL)
        return _Panel(address, k0, inner, j0, width, second)
    pack_panel(shifted(p.b, k0, 2 * j0), inner, width, buffers.panel)
    return _Panel(buffers.panel, k0, inner, j0, width, second)


@jit_strict_inline
def _multiply_amx(path: int, a: MatrixRef, panel: int, inner: int, out: MatrixRef, accumulate: int) -> None:
    """Multiply `TILE_SIZE` rows by a panel; AVX-512 computes the rest of k that fills no tile."""
    steps = inner // K_STEP
    tile_amx(a, panel, steps, out, accumulate)
    done = steps * K_STEP
    if done < inner:
        for i in range(0, TILE_SIZE, TILE_ROWS):
            rest, part = shifted(a, i, 2 * done), panel + done // 2 * (4 * PANEL)
            _multiply_rows(path, rest, min(TILE_ROWS, TILE_SIZE - i), part, inner - done, shifted(out, i, 0), 1)


@jit_strict_inline
def _multiply_tile(p: Bf16GemmArgs, buffers: _Bf16Buffers, panel: _Panel, i0: int, rows1: int) -> int:
    """Multiply the next rows, from `i0` on and before `rows1`, by a panel; return their number."""
    rounds, adds = p.epilogue >= Epilogue.ROUND, p.epilogue == Epilogue.ADD or panel.k0 > 0
    amx = p.path == DotPath.AMX and i0 + TILE_SIZE <= rows1 and panel.inner >= K_STEP
    height = TILE_SIZE if amx else min(TILE_ROWS, rows1 - i0)
    direct = not rounds and panel.width == PANEL and (amx or height == TILE_ROWS)
    out = shifted(p.out, i0, 4 * panel.j0) if direct else MatrixRef(buffers.tile, 4 * PANEL)
    a, accumulate = shifted(p.a, i0, 2 * panel.k0), 1 if direct and adds else 0
    if amx:
        _multiply_amx(p.path, a, panel.address, panel.inner, out, accumulate)
    else:
        _multiply_rows(p.path, a, height, panel.address, panel.inner, out, accumulate)
    if panel.second != 0:
        a2 = shifted(p.a2, i0, 0)
        if amx:
            _multiply_amx(p.path, a2, panel.second, p.inner2, out, 1)
        else:
            _multiply_rows(p.path, a2, height, panel.second, p.inner2, out, 1)
    if rounds:
        _finish(p, buffers, i0, panel.j0, height, panel.width)
    elif not direct:
        _merge(buffers.tile, shifted(p.out, i0, 4 * panel.j0), height, panel.width, adds)
    return height


@jit_strict_fp
def run_bf16(p: Bf16GemmArgs) -> None:
    """Compute the product: for each depth and each block of rows, panel after panel, tile after tile."""
    buffers = _Bf16Buffers(_tile_buffer(), _bias_buffer(), _edge_buffer(), _panel_buffer())
    if p.path == DotPath.AMX:
        configure_tiles()
    depth = p.inner
    if p.epilogue <= Epilogue.ADD:  # sums that are rounded at their end are summed in one pass
        depth = min(depth, _DEPTH if p.packed else _STACK_DEPTH)
    block = max(_BLOCK // depth // TILE_SIZE, 2) * TILE_SIZE
    for k0 in range(0, p.inner, depth):
        inner = min(depth, p.inner - k0)
        for rows0 in range(0, p.rows, block):
            rows1 = min(rows0 + block, p.rows)
            for j0 in range(0, p.columns, PANEL):
                panel = _find_panel(p, buffers, k0, inner, j0)
                i0 = rows0
                while i0 < rows1:
                    i0 += _multiply_tile(p, buffers, panel, i0, rows1)
    if p.path == DotPath.AMX:
        release_tiles()


ENTRY = Entry("threadloom_gemm_bf16", run_bf16, Bf16GemmArgs)
