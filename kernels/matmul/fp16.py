"""Products of float16 matrices through float32: blocks of both operands are upcast and multiplied by BLAS.

x86-64 processors below AVX-512-FP16 have no arithmetic in float16, only conversions, and float16 sums would lose too
much anyway; what float16 saves is memory. So a block of each operand is widened into scratch of the caller's, where it
stays in the L2 cache or near it, and the float32 product runs on the blocks::

        op(B):   _COLUMNS wide            for each _DEPTH of k
               +------+------+              for each _ROWS of op(A): widen, once
               |      |      | _DEPTH         for each _COLUMNS of op(B): widen, unless it is there already
               +------+------+                  out += the product of the two
      op(A)    +------+------+
      _ROWS |  | out  |      |
            |  +------+------+

The widening is exact, so the result is that of the float32 product of the numbers, and of any backend the error is the
float32 one. Blocks follow from the shapes alone: the bits are the same in any thread.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_strict_fp
from threadloom.kernels.matmul.blas import gemm
from threadloom.kernels.simd import (
    FP16Bits,
    from_fp16,
    load_float32,
    load_uint16,
    round_to_fp16,
    store_float32,
    store_uint16,
    to_fp16,
    upcast_fp16,
)

_ROWS = 512  # rows of op(A) that meet every block of op(B) before the next ones, as in kernels.gemm
_COLUMNS = 512  # columns of op(B) of a block
_DEPTH = 2048  # of both; a multiple of the depth at which kernels.gemm cuts its sums: the bits are those of one product


def fp16_scratch_sizes(rows: int, columns: int, inner: int) -> tuple[int, int]:
    """Return how many floats of `wide_a` and of `wide_b` a product of (rows, inner) and (inner, columns) needs.

    At most 1 Mi (4 MiB) each, whatever the shape; scratch that is longer, made for another product, will do.
    """
    depth = min(inner, _DEPTH)
    return min(rows, _ROWS) * depth, min(columns, _COLUMNS) * depth


def fp16_sums_size(rows: int, columns: int) -> int:
    """Return how many floats of `sums` `linear_fp16` needs for a result of (rows, columns); at most 256 Ki."""
    return min(rows, _ROWS) * min(columns, _COLUMNS)


class _Operands(NamedTuple):
    """Both factors of a product, by addresses; row strides are in bytes."""

    a: int
    a_bytes: int
    transpose_a: bool
    b: int
    b_bytes: int
    transpose_b: bool
    inner: int


@jit_strict_fp
def _widen(source: int, row_bytes: int, rows: int, columns: int, out: int) -> None:
    """Write a block of a matrix to `out`, row after row; both are addresses, from which LLVM knows the steps."""
    for i in range(rows):
        line, target = source + i * row_bytes, out + 4 * columns * i
        for j in range(columns):
            store_float32(target, j, from_fp16(np.int16(load_uint16(line, j))))


@jit_strict_fp
def _multiply(p: _Operands, out: Floats, i0: int, j0: int, accumulate: bool, wide_a: Floats, wide_b: Floats) -> None:
    """Compute the part of the product that begins at (i0, j0) and has the shape of `out`."""
    rows, columns = out.shape
    for k0 in range(0, p.inner, _DEPTH):
        depth = min(_DEPTH, p.inner - k0)
        beta = 1.0 if accumulate or k0 > 0 else 0.0
        for i in range(0, rows, _ROWS):
            height = min(_ROWS, rows - i)
            block_a = wide_a[: height * depth].reshape((depth, height) if p.transpose_a else (height, depth))
            first, second = (k0, i0 + i) if p.transpose_a else (i0 + i, k0)
            source = p.a + first * p.a_bytes + 2 * second
            _widen(source, p.a_bytes, block_a.shape[0], block_a.shape[1], wide_a.ctypes.data)
            for j in range(0, columns, _COLUMNS):
                width = min(_COLUMNS, columns - j)
                block_b = wide_b[: width * depth].reshape((width, depth) if p.transpose_b else (depth, width))
                if i == 0 or columns > _COLUMNS:
                    first, second = (j0 + j, k0) if p.transpose_b else (k0, j0 + j)
                    source = p.b + first * p.b_bytes + 2 * second
                    _widen(source, p.b_bytes, block_b.shape[0], block_b.shape[1], wide_b.ctypes.data)
                part = out[i : i + height, j : j + width]
                gemm(block_a, block_b, part, p.transpose_a, p.transpose_b, 1.0, beta)


@jit_strict_fp
def _gemm_compiled(
    a: FP16Bits,
    b: FP16Bits,
    out: Floats,
    transpose_a: bool,
    transpose_b: bool,
    accumulate: bool,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    inner = a.shape[0] if transpose_a else a.shape[1]
    operands = _Operands(a.ctypes.data, a.strides[0], transpose_a, b.ctypes.data, b.strides[0], transpose_b, inner)
    _multiply(operands, out, 0, 0, accumulate, wide_a, wide_b)


@jit_strict_fp
def _round_rows(total: Floats, bias: int, out: int, out_bytes: int) -> None:
    """Write ``total + bias``, rounded, to the addresses of `out`; a `bias` of 0 is none."""
    rows, columns = total.shape
    for i in range(rows):
        source, target = total.ctypes.data + 4 * columns * i, out + i * out_bytes
        if bias != 0:
            for j in range(columns):
                store_uint16(target, j, np.uint16(to_fp16(load_float32(source, j) + load_float32(bias, j))))
        else:
            for j in range(columns):
                store_uint16(target, j, np.uint16(to_fp16(load_float32(source, j))))


@jit_strict_fp
def _linear_compiled(
    a: FP16Bits,
    b: FP16Bits,
    transpose_b: bool,
    bias: Floats,
    out: FP16Bits,
    sums: Floats,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    rows, columns = out.shape
    operands = _Operands(a.ctypes.data, a.strides[0], False, b.ctypes.data, b.strides[0], transpose_b, a.shape[1])
    for i in range(0, rows, _ROWS):
        height = min(_ROWS, rows - i)
        for j in range(0, columns, _COLUMNS):
            width = min(_COLUMNS, columns - j)
            total = sums[: height * width].reshape((height, width))
            _multiply(operands, total, i, j, False, wide_a, wide_b)
            place = out.ctypes.data + i * out.strides[0] + 2 * j
            _round_rows(total, bias.ctypes.data + 4 * j if bias.shape[0] > 0 else 0, place, out.strides[0])


def _gemm_numpy(
    a: FP16Bits,
    b: FP16Bits,
    out: Floats,
    transpose_a: bool,
    transpose_b: bool,
    accumulate: bool,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    product = np.matmul(upcast_fp16(a.T if transpose_a else a), upcast_fp16(b.T if transpose_b else b))
    out[...] = out + product if accumulate else product


def _linear_numpy(
    a: FP16Bits,
    b: FP16Bits,
    transpose_b: bool,
    bias: Floats,
    out: FP16Bits,
    sums: Floats,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    total = np.matmul(upcast_fp16(a), upcast_fp16(b.T if transpose_b else b))
    out[...] = round_to_fp16(total + bias if bias.size else total)


if JIT_ENABLED:
    _gemm, _linear = _gemm_compiled, _linear_compiled
else:
    _gemm, _linear = _gemm_numpy, _linear_numpy


@jit_strict_fp
def gemm_fp16(
    a: FP16Bits,
    b: FP16Bits,
    out: Floats,
    transpose_a: bool,
    transpose_b: bool,
    accumulate: bool,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    """Write, or add when `accumulate`, ``op(a) @ op(b)`` to `out` (M, N) in float32; op transposes where asked.

    op(a) is (M, K), op(b) (K, N), both float16; K is at least 1. Elements lie side by side within a row, the rows may
    lie apart, in `out` too. Without `accumulate` the earlier content of `out` does not matter. The flat `wide_a` and
    `wide_b` have at least the lengths of ``fp16_scratch_sizes(M, N, K)``. Nothing may overlap.
    """
    _gemm(a, b, out, transpose_a, transpose_b, accumulate, wide_a, wide_b)


@jit_strict_fp
def linear_fp16(
    a: FP16Bits,
    b: FP16Bits,
    transpose_b: bool,
    bias: Floats,
    out: FP16Bits,
    sums: Floats,
    wide_a: Floats,
    wide_b: Floats,
) -> None:
    """Write ``a @ op(b) + bias``, rounded to float16 once, to `out` (M, N); bias (N,) float32, or (0,) for none.

    Arrays as in `gemm_fp16`; the flat `sums` has at least ``fp16_sums_size(M, N)`` floats.
    """
    _linear(a, b, transpose_b, bias, out, sums, wide_a, wide_b)
