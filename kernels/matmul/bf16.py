"""Products of bfloat16 matrices with sums in float32: what linear layers, attention and the vocabulary projection use.

The first operand is row-major, the second packed (`kernels.matmul.pack`); nothing is copied on the way. The result is
float32, written or added to, or bfloat16 with the bias added before the one rounding, and if asked for its GELU. A
linear layer needs three products::

    forward          y  = x @ W       a = x            b = pack(W)               once an update
    input's grad.    dx = dy @ W.T    a = dy           b = pack(W, transpose)    once an update
    weight's grad.   dW += x.T @ dy   a = transpose(x) b = dy, packed on the way each micro-batch

Blocks: a panel of B, 32 columns, meets a block of rows of A that stays in the L2 cache, tile after tile; sums longer
than `_DEPTH` are cut there when the result is float32. Within a row nothing depends on where the other rows are cut,
except that AMX takes the rows and the part of k that fill its tiles and leaves the rest to AVX-512; all of it follows
from the shapes alone, so the bits are the same in any thread.

Sums are float32, in the order of k: the error of one is at most about ``K * 2**-23 * |a| @ |b|``, and much less on
average. The instructions take subnormal inputs (below 1.2e-38) for zero.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from threadloom.kernels.compiling import JIT_ENABLED, Entry, Floats, jit_strict_fp, jit_strict_inline
from threadloom.kernels.matmul.amx import K_STEP, TILE_SIZE, configure_tiles, release_tiles, tile_amx
from threadloom.kernels.matmul.epilogue import finish_gelu, finish_rounded
from threadloom.kernels.matmul.pack import PANEL, PackedBits, pack_panel, unpack_bf16
from threadloom.kernels.matmul.tile import TILE_COLUMNS, TILE_ROWS, tile_avx512, tile_float32
from threadloom.kernels.simd import (
    BF16Bits,
    DotPath,
    chosen_path,
    load_float32,
    load_uint16,
    round_to_bf16,
    stack_buffer,
    store_float32,
    store_uint16,
    upcast_bf16,
)

_DEPTH = 4096  # longest sum in one go: a panel of it is 256 KiB, a part of the L2 cache
_STACK_DEPTH = 512  # the same where B is packed on the way, panel by panel: 32 KiB of the L1 cache and of the stack
_BLOCK = 1 << 18  # numbers of A that all panels meet before the next ones: 512 KiB of the L2 cache
_LINEAR = np.float32(1.5957691216057308)  # 2 sqrt(2 / pi), as in kernels.gelu
_CUBIC = np.float32(0.07135481282636)  # 0.044715 * 2 sqrt(2 / pi)

_AMX, _AVX512 = DotPath.AMX.value, DotPath.AVX512.value
_WRITE, _ADD, _ROUND, _GELU = range(4)
_tile_space = stack_buffer(TILE_SIZE * PANEL * 4)
_bias_space = stack_buffer(PANEL * 4)
_panel_space = stack_buffer(_STACK_DEPTH * PANEL * 2)
_edge_space = stack_buffer(2 * TILE_SIZE * PANEL * 2)


class _Product(NamedTuple):
    """One product, by addresses; row strides are in bytes."""

    a: int  # (rows, inner) bfloat16
    a_bytes: int
    b: int  # packed (inner, columns), or not
    b_bytes: int  # from panel to panel, or from row to row
    packed: bool
    out: int  # (rows, columns): float32 for _WRITE and _ADD, bfloat16 for the others
    out_bytes: int
    rows: int
    columns: int
    inner: int
    mode: int  # _WRITE, _ADD: no bias; _ROUND: bias; _GELU: bias and GELU
    bias: int  # (columns,) float32; 0: none
    other: int  # bfloat16 (rows, columns): what goes into the GELU; the other modes leave it alone
    other_bytes: int


@jit_strict_fp
def _multiply_rows(
    path: int, a: int, a_bytes: int, height: int, panel: int, inner: int, out: int, out_bytes: int, accumulate: int
) -> None:
    """Multiply up to `TILE_ROWS` rows with a panel. All `TILE_ROWS` x 32 floats at `out` are written."""
    for column in range(0, PANEL, TILE_COLUMNS):
        part, target = panel + 4 * column, out + 4 * column
        if path >= _AVX512:
            tile_avx512(a, a_bytes, height - 1, part, inner, target, out_bytes, accumulate)
        else:
            tile_float32(a, a_bytes, height - 1, part, inner, target, out_bytes, accumulate)


@jit_strict_fp
def _merge(p: _Product, tile: int, i0: int, j0: int, height: int, width: int, adds: bool) -> None:
    """Write, or add, the part of a tile that lies inside of a float32 result."""
    for i in range(height):
        source, target = tile + 4 * PANEL * i, p.out + (i0 + i) * p.out_bytes + 4 * j0
        if adds:
            for j in range(width):
                store_float32(target, j, load_float32(target, j) + load_float32(source, j))
        else:
            for j in range(width):
                store_float32(target, j, load_float32(source, j))


@jit_strict_fp
def _copy_shorts(source: int, source_bytes: int, target: int, target_bytes: int, height: int, width: int) -> None:
    for i in range(height):
        line, place = source + i * source_bytes, target + i * target_bytes
        for j in range(width):
            store_uint16(place, j, load_uint16(line, j))


@jit_strict_fp
def _finish(p: _Product, tile: int, bias: int, edges: int, i0: int, j0: int, height: int, width: int) -> None:
    """Apply the rest of the layer to a tile of sums and round it into the result.

    At the right edge this happens in `edges`, room for two tiles, since the vectors would reach past the arrays.
    """
    out, other = p.out + i0 * p.out_bytes + 2 * j0, p.other + i0 * p.other_bytes + 2 * j0
    target, target_bytes, beside, beside_bytes = out, p.out_bytes, other, p.other_bytes
    if width < PANEL:
        target, beside = edges, edges + TILE_SIZE * 2 * PANEL
        target_bytes = beside_bytes = 2 * PANEL
    if p.mode == _ROUND:
        finish_rounded(tile, height, bias, beside, beside_bytes, target, target_bytes)
    else:
        finish_gelu(tile, height, bias, beside, beside_bytes, target, target_bytes)
    if width < PANEL:
        _copy_shorts(target, target_bytes, out, p.out_bytes, height, width)
        if p.mode == _GELU:
            _copy_shorts(beside, beside_bytes, other, p.other_bytes, height, width)


class _Room(NamedTuple):
    """Addresses on the stack."""

    tile: int  # of sums, where they do not go straight into the result
    bias: int  # of a panel's columns, zeros filled up
    edges: int
    panel: int  # of B, where that is packed on the way


@jit_strict_inline
def _find_panel(p: _Product, room: _Room, k0: int, inner: int, j0: int, width: int) -> int:
    """Return where the panel lies; its bias, if any is added, is in `room` then."""
    if p.mode > _ADD:
        for j in range(PANEL):
            store_float32(room.bias, j, load_float32(p.bias + 4 * j0, j) if p.bias != 0 and j < width else 0.0)
    if p.packed:
        return p.b + j0 // PANEL * p.b_bytes + k0 // 2 * (4 * PANEL)
    pack_panel(p.b + k0 * p.b_bytes + 2 * j0, p.b_bytes, inner, width, room.panel)
    return room.panel


@jit_strict_inline
def _multiply_amx(
    path: int, a: int, a_bytes: int, panel: int, inner: int, out: int, out_bytes: int, accumulate: int
) -> None:
    """Multiply `TILE_SIZE` rows with a panel: what fills no tile along k by AVX-512."""
    steps = inner // K_STEP
    tile_amx(a, a_bytes, panel, steps, out, out_bytes, accumulate)
    done = steps * K_STEP
    if done < inner:
        for i in range(0, TILE_SIZE, TILE_ROWS):
            rest, part = a + i * a_bytes + 2 * done, panel + done // 2 * (4 * PANEL)
            left = min(TILE_ROWS, TILE_SIZE - i)
            _multiply_rows(path, rest, a_bytes, left, part, inner - done, out + i * out_bytes, out_bytes, 1)


@jit_strict_inline
def _multiply_tile(
    p: _Product, path: int, room: _Room, panel: int, k0: int, inner: int, i0: int, rows1: int, j0: int
) -> int:
    """Multiply the next rows, from `i0` on and before `rows1`, with a panel; return how many they were."""
    plain, adds = p.mode <= _ADD, p.mode == _ADD or k0 > 0
    width = min(PANEL, p.columns - j0)
    amx = path == _AMX and i0 + TILE_SIZE <= rows1 and inner >= K_STEP
    height = TILE_SIZE if amx else min(TILE_ROWS, rows1 - i0)
    direct = plain and width == PANEL and (amx or height == TILE_ROWS)
    out, out_bytes = (p.out + i0 * p.out_bytes + 4 * j0, p.out_bytes) if direct else (room.tile, 4 * PANEL)
    a, add = p.a + i0 * p.a_bytes + 2 * k0, 1 if direct and adds else 0
    if amx:
        _multiply_amx(path, a, p.a_bytes, panel, inner, out, out_bytes, add)
    else:
        _multiply_rows(path, a, p.a_bytes, height, panel, inner, out, out_bytes, add)
    if not plain:
        _finish(p, room.tile, room.bias, room.edges, i0, j0, height, width)
    elif not direct:
        _merge(p, room.tile, i0, j0, height, width, adds)
    return height


@jit_strict_fp
def _product(p: _Product) -> None:
    """Compute it: for each depth and each block of rows, panel after panel, tile after tile."""
    path = chosen_path()
    room = _Room(_tile_space(), _bias_space(), _edge_space(), _panel_space())
    if path == _AMX:
        configure_tiles()
    depth = p.inner
    if p.mode <= _ADD:  # what is rounded at its end is summed in one go
        depth = min(depth, _DEPTH if p.packed else _STACK_DEPTH)
    block = max(_BLOCK // depth // TILE_SIZE, 2) * TILE_SIZE
    for k0 in range(0, p.inner, depth):
        inner = min(depth, p.inner - k0)
        for rows0 in range(0, p.rows, block):
            rows1 = min(rows0 + block, p.rows)
            for j0 in range(0, p.columns, PANEL):
                panel = _find_panel(p, room, k0, inner, j0, min(PANEL, p.columns - j0))
                i0 = rows0
                while i0 < rows1:
                    i0 += _multiply_tile(p, path, room, panel, k0, inner, i0, rows1, j0)
    if path == _AMX:
        release_tiles()


@jit_strict_fp
def _run(
    a: int, a_bytes: int, b: int, b_bytes: int, packed: int, out: int, out_bytes: int, rows: int, columns: int,
    inner: int, mode: int, bias: int, other: int, other_bytes: int,
) -> None:  # fmt: skip
    """Run `_product`, with arguments that have one form in C, too."""
    _product(
        _Product(
            a, a_bytes, b, b_bytes, packed != 0, out, out_bytes, rows, columns, inner, mode, bias, other, other_bytes
        )
    )


_ENTRY = Entry("threadloom_lowp_product", _run, (types.intp,) * 14)
_ENTRY.prepare()
_call = _ENTRY.call


@jit_strict_inline
def _start(
    a: BF16Bits, b: PackedBits | BF16Bits, packed: int, out: Floats | BF16Bits, mode: int, bias: Floats, other: BF16Bits
) -> None:
    rows, columns = out.shape
    biased = np.intp(bias.ctypes.data) if bias.shape[0] else np.intp(0)
    _call((
        np.intp(a.ctypes.data), a.strides[0], np.intp(b.ctypes.data), b.strides[0], packed,
        np.intp(out.ctypes.data), out.strides[0], rows, columns, a.shape[1], mode,
        biased, np.intp(other.ctypes.data), other.strides[0],
    ))  # fmt: skip


@jit_strict_fp
def _gemm_compiled(a: BF16Bits, b: PackedBits, out: Floats, accumulate: bool) -> None:
    _start(a, b, 1, out, _ADD if accumulate else _WRITE, out[0, :0], a)


@jit_strict_fp
def _gemm_rows_compiled(a: BF16Bits, b: BF16Bits, out: Floats, accumulate: bool) -> None:
    _start(a, b, 0, out, _ADD if accumulate else _WRITE, out[0, :0], a)


@jit_strict_fp
def _linear_compiled(a: BF16Bits, b: PackedBits, bias: Floats, out: BF16Bits) -> None:
    _start(a, b, 1, out, _ROUND, bias, out)


@jit_strict_fp
def _linear_gelu_compiled(a: BF16Bits, b: PackedBits, bias: Floats, before: BF16Bits, out: BF16Bits) -> None:
    _start(a, b, 1, out, _GELU, bias, before)


def _multiply_numpy(a: BF16Bits, b: PackedBits, columns: int) -> Floats:
    return np.matmul(upcast_bf16(a), upcast_bf16(unpack_bf16(b, a.shape[1], columns)))


def _gemm_numpy(a: BF16Bits, b: PackedBits, out: Floats, accumulate: bool) -> None:
    product = _multiply_numpy(a, b, out.shape[1])
    out[...] = out + product if accumulate else product


def _gemm_rows_numpy(a: BF16Bits, b: BF16Bits, out: Floats, accumulate: bool) -> None:
    product = np.matmul(upcast_bf16(a), upcast_bf16(b))
    out[...] = out + product if accumulate else product


def _linear_numpy(a: BF16Bits, b: PackedBits, bias: Floats, out: BF16Bits) -> None:
    sums = _multiply_numpy(a, b, out.shape[1])
    out[...] = round_to_bf16(sums + bias if bias.size else sums)


def _linear_gelu_numpy(a: BF16Bits, b: PackedBits, bias: Floats, before: BF16Bits, out: BF16Bits) -> None:
    _linear_numpy(a, b, bias, before)
    v = upcast_bf16(before)
    with np.errstate(over="ignore"):
        out[...] = round_to_bf16(v / (1 + np.exp(-v * (_LINEAR + _CUBIC * v * v))))


if JIT_ENABLED:
    _gemm, _gemm_rows, _linear, _linear_gelu = (
        _gemm_compiled,
        _gemm_rows_compiled,
        _linear_compiled,
        _linear_gelu_compiled,
    )
else:
    _gemm, _gemm_rows, _linear, _linear_gelu = _gemm_numpy, _gemm_rows_numpy, _linear_numpy, _linear_gelu_numpy


@jit_strict_fp
def gemm_bf16(a: BF16Bits, b: PackedBits, out: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, ``a @ B`` to `out`: a (M, K), `b` the packed B (K, N), out (M, N).

    K is at least 1. Elements lie side by side within the rows of `a` and `out`; the rows may lie apart. Without
    `accumulate` the earlier content of `out` does not matter. `out` must not overlap `a` or `b`.
    """
    _gemm(a, b, out, accumulate)


@jit_strict_fp
def gemm_rows_bf16(a: BF16Bits, b: BF16Bits, out: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, ``a @ b`` to `out`, with `b` (K, N) row-major: it is packed panel by panel.

    For operands that are used once, as in the gradient of a weight: a the transposed x, b the dy.
    """
    _gemm_rows(a, b, out, accumulate)


@jit_strict_fp
def linear_bf16(a: BF16Bits, b: PackedBits, bias: Floats, out: BF16Bits) -> None:
    """Write ``a @ B + bias``, rounded once, to `out` (M, N); arrays as in `gemm_bf16`, bias (N,), or (0,) for none."""
    _linear(a, b, bias, out)


@jit_strict_fp
def linear_gelu_bf16(a: BF16Bits, b: PackedBits, bias: Floats, before: BF16Bits, out: BF16Bits) -> None:
    """Write ``a @ B + bias`` to `before` and its GELU to `out`, both (M, N) and rounded.

    The GELU is of the rounded numbers, so that backward, which has only those, makes it again: to float32's last
    rounding, which now and then takes the bfloat16 to its neighbour.
    """
    _linear_gelu(a, b, bias, before, out)
