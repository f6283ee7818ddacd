"""Layers for one token during generation, shared by all architectures: matrix times vector, and cached attention.

A step of generation reads every weight once and is bound by memory; its products run along the rows of the weights as
they are stored. Matrices are in float32, packed as bfloat16 (`kernels.float32.packed_vector`), or in blocks of 8 bits
(`kernels.float32.blocks8`), and keys and values in float32 or bfloat16: the dtype selects the code when a kernel is
compiled. Sums are in float32.

A team of threads (`kernels.common.team`) divides a step. A member computes its columns of a product, whole panels of
32, and its heads of attention. No sum is divided, so the bits are those of one thread.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from threadloom.kernels.common import HeadCounts, Part, Team, meet_soon, part_of, part_of_units, plus_product
from threadloom.kernels.compiling import (
    OVERLOAD_OPTIONS,
    Floats,
    TokenIds,
    jit_kernel,
    jit_strict_fp,
)
from threadloom.kernels.float32.blocks8 import Blocks8, add_blocks8, copy_blocks8_column
from threadloom.kernels.float32.packed_vector import add_packed, copy_packed_column
from threadloom.kernels.matmul import PANEL, PackedBits
from threadloom.kernels.simd import FloatRow, exp32, load_element, row_max, store_element

Matrix = Floats | PackedBits | Blocks8
"""Weights of generation: float32 as in a model, packed bfloat16, or 8 bits by blocks.

A matrix (I, O) of a layer is packed as such, a matrix (V, C) of tokens as its transpose: the vector is on the left.
"""

_ZERO = np.float32(0.0)


class KVCache(NamedTuple):
    """Keys and values of one sequence; position t is valid once token t has been processed."""

    keys: FloatRow  # (L, context, K D) the heads side by side
    values: FloatRow  # (L, context, K D)


@jit_kernel
def write_product(x: Floats, weight: Matrix, bias: Floats, out: Floats, team: Team) -> None:
    """Write the member's columns of ``x @ weight + bias`` to `out`: x (I,), weight (I, O), bias (O,) or (0,), out (O,).

    A bias of length 0 adds nothing.
    """
    columns = part_of_units(out.shape[0], PANEL, team)
    target = out[columns.first : columns.last]
    for j in range(target.shape[0]):
        target[j] = _ZERO
    add_to(target, bias[columns.first : columns.last])
    _add_product(x, weight, columns, target)


@jit_kernel
def add_product(x: Floats, weight: Matrix, bias: Floats, out: Floats, team: Team) -> None:
    """Add the member's columns of ``x @ weight + bias`` to `out`, as `write_product`."""
    columns = part_of_units(out.shape[0], PANEL, team)
    target = out[columns.first : columns.last]
    add_to(target, bias[columns.first : columns.last])
    _add_product(x, weight, columns, target)


@jit_kernel
def write_logits(weight: Matrix, h: Floats, logits: Floats, team: Team) -> None:
    """Write the member's part of the products of the rows of `weight` (V, C) and `h` (C,) to `logits` (V,)."""
    tokens = part_of_units(logits.shape[0], PANEL, team)
    _write_logits(weight, h, tokens, logits[tokens.first : tokens.last])


@jit_kernel
def copy_row(weight: Matrix, number: int, target: Floats) -> None:
    """Copy a row of `weight` (V, C) to `target` (C,)."""
    _copy_row(weight, number, target)


@jit_kernel
def copy_rows(weight: Matrix, numbers: TokenIds, targets: Floats) -> None:
    """Copy the rows `numbers` (R,) of `weight` (V, C) to `targets` (R, C)."""
    for r in range(numbers.shape[0]):
        _copy_row(weight, numbers[r], targets[r])


@jit_strict_fp  # nothing is reassociated: a column has the same bits in the vector loop and in the rest of it
def _add_rows(x: Floats, weight: Floats, columns: Part, out: Floats) -> None:
    """Eight rows of the weight per pass over `out`, which is the columns alone."""
    j0, j1, rows = columns.first, columns.last, weight.shape[0]
    eight = rows - rows % 8
    for i in range(0, eight, 8):
        w0, w1, w2, w3 = weight[i][j0:j1], weight[i + 1][j0:j1], weight[i + 2][j0:j1], weight[i + 3][j0:j1]
        w4, w5, w6, w7 = weight[i + 4][j0:j1], weight[i + 5][j0:j1], weight[i + 6][j0:j1], weight[i + 7][j0:j1]
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(out.shape[0]):
            low = plus_product(plus_product(plus_product(x0 * w0[j], x1, w1[j]), x2, w2[j]), x3, w3[j])
            high = plus_product(plus_product(plus_product(x4 * w4[j], x5, w5[j]), x6, w6[j]), x7, w7[j])
            out[j] += low + high
    for i in range(eight, rows):
        row, factor = weight[i][j0:j1], x[i]
        for j in range(out.shape[0]):
            out[j] = plus_product(out[j], factor, row[j])


@jit_kernel
def _add_packed_columns(x: Floats, weight: PackedBits, columns: Part, out: Floats) -> None:
    add_packed(x, weight[columns.first // PANEL : -(-columns.last // PANEL)], out)


@jit_kernel
def _add_blocks8_columns(x: Floats, blocks: Blocks8, columns: Part, out: Floats) -> None:
    add_blocks8(x, blocks[columns.first // PANEL : -(-columns.last // PANEL)], out)


@jit_kernel
def _write_dots(weight: Floats, h: Floats, rows: Part, out: Floats) -> None:
    for v in range(out.shape[0]):
        out[v] = dot(h, weight[rows.first + v])


@jit_kernel
def dot(a: Floats, b: FloatRow) -> np.float32:
    """Return the dot product of two vectors (I,)."""
    total = _ZERO
    for j in range(a.shape[0]):
        total += a[j] * load_element(b, j)
    return total


@jit_kernel
def copy(source: FloatRow, target: FloatRow) -> None:
    """Copy `source` to `target`, both (I,); rounds if the target is narrower."""
    for j in range(target.shape[0]):
        store_element(target, j, load_element(source, j))


@jit_kernel
def add_to(target: Floats, term: Floats) -> None:
    """Add `term` to `target`, both (I,); a term of length 0 adds nothing."""
    for j in range(term.shape[0]):
        target[j] += term[j]


@jit_kernel
def _attend_head(
    q: Floats, keys: FloatRow, values: FloatRow, count: int, first: int, scores: Floats, out: Floats
) -> None:
    """Write the attention of one head of a query (D,) over the first `count` keys and values to `out` (D,).

    `keys` and `values` are (context, K D); those of the head are the D columns from `first`.
    """
    size = q.shape[0]
    scale = np.float32(1.0 / math.sqrt(size))
    for t in range(count):
        scores[t] = scale * dot(q, keys[t, first : first + size])
    largest = row_max(scores, count)
    total = _ZERO
    for t in range(count):
        e = exp32(scores[t] - largest)
        scores[t] = e
        total += e
    for j in range(size):
        out[j] = _ZERO
    for t in range(count):
        share, row = scores[t] / total, values[t, first : first + size]
        for j in range(size):
            out[j] += share * load_element(row, j)


@jit_kernel
def attend(
    qkv: Floats, cache: KVCache, layer: int, position: int, heads: HeadCounts, scores: Floats, out: Floats, team: Team
) -> None:
    """Cache the keys and values in `qkv` ((H + 2K) D,) at a position, and write the attention of its query to `out`.

    The query attends to this position and to those before. A member caches its heads of keys and values, and computes
    its heads of `out` (H D,). `scores` (context,) is scratch of the member.
    """
    size = out.shape[0] // heads.query
    cached = part_of(heads.key_value, team)
    _append_columns(qkv, cache, layer, position, Part(cached.first * size, cached.last * size))
    if heads.query != heads.key_value:
        meet_soon(team)  # a head of keys that several heads of the query share may be that of another member
    of_member, group = part_of(heads.query, team), heads.query // heads.key_value
    keys, values, count = cache.keys[layer], cache.values[layer], position + 1
    for head in range(of_member.first, of_member.last):
        i, j = head * size, (head + 1) * size
        _attend_head(qkv[i:j], keys, values, count, head // group * size, scores, out[i:j])


@jit_kernel
def _append_columns(qkv: Floats, cache: KVCache, layer: int, position: int, columns: Part) -> None:
    """Copy columns of the keys and values of one row of `qkv` ((H + 2K) D,) to a position of the cache."""
    width, j0, j1 = cache.keys.shape[2], columns.first, columns.last
    first = qkv.shape[0] - 2 * width
    copy(qkv[first + j0 : first + j1], cache.keys[layer, position, j0:j1])
    copy(qkv[first + width + j0 : first + width + j1], cache.values[layer, position, j0:j1])


@jit_kernel
def prefill_cache(qkv: Floats, first_row: int, length: int, cache: KVCache) -> None:
    """Fill positions 0 .. length - 1 of the cache from rows ``first_row ...`` of forward's `qkv` (L, R, (H + 2K) D)."""
    whole = Part(0, cache.keys.shape[2])
    for n in range(qkv.shape[0]):
        for t in range(length):
            _append_columns(qkv[n, first_row + t], cache, n, t, whole)


@jit_kernel
def _write_product(weight: Matrix, h: Floats, columns: Part, out: Floats) -> None:
    for v in range(out.shape[0]):
        out[v] = _ZERO
    _add_product(h, weight, columns, out)


@jit_kernel
def _copy_float_row(weight: Floats, number: int, target: Floats) -> None:
    copy(weight[number], target)


_ADD: dict[str, Any] = {"float32": _add_rows, "uint32": _add_packed_columns, "int8": _add_blocks8_columns}
_WRITE: dict[str, Any] = {"float32": _write_dots, "uint32": _write_product, "int8": _write_product}
_COPY: dict[str, Any] = {"float32": _copy_float_row, "uint32": copy_packed_column, "int8": copy_blocks8_column}


def _add_product(x: Floats, weight: Any, columns: Part, out: Floats) -> None:
    """Add some columns of ``x @ weight`` to `out`, which is the columns alone."""
    _ADD[str(weight.dtype)](x, weight, columns, out)


def _write_logits(weight: Any, h: Floats, rows: Part, out: Floats) -> None:
    _WRITE[str(weight.dtype)](weight, h, rows, out)


def _copy_row(weight: Any, number: int, target: Floats) -> None:
    _COPY[str(weight.dtype)](weight, number, target)


@overload(_add_product, jit_options=OVERLOAD_OPTIONS)
def _add_product_compiled(x: Any, weight: Any, columns: Any, out: Any) -> Any:
    kernel = _ADD[str(weight.dtype)]

    def compiled(x: Any, weight: Any, columns: Any, out: Any) -> Any:
        kernel(x, weight, columns, out)

    return compiled


@overload(_write_logits, jit_options=OVERLOAD_OPTIONS)
def _write_logits_compiled(weight: Any, h: Any, rows: Any, out: Any) -> Any:
    kernel = _WRITE[str(weight.dtype)]

    def compiled(weight: Any, h: Any, rows: Any, out: Any) -> Any:
        kernel(weight, h, rows, out)

    return compiled


@overload(_copy_row, jit_options=OVERLOAD_OPTIONS)
def _copy_row_compiled(weight: Any, number: Any, target: Any) -> Any:
    kernel = _COPY[str(weight.dtype)]

    def compiled(weight: Any, number: Any, target: Any) -> Any:
        kernel(weight, number, target)

    return compiled
