"""Layers for one token during generation, shared by all architectures: matrix times vector, and cached attention.

A step of generation reads every weight once and is bound by memory; its products run along the rows of the weights as
they are stored. Matrices are in float32, packed as bfloat16 (`kernels.float32.packed_vector`), or in blocks of 8 bits
(`kernels.float32.blocks8`), and keys and values in float32 or bfloat16: the dtype selects the code when a kernel is
compiled. Sums are in float32.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from threadloom.kernels.common import HeadCounts
from threadloom.kernels.compiling import OVERLOAD_OPTIONS, Floats, TokenIds, jit_kernel
from threadloom.kernels.float32.blocks8 import Blocks8, add_blocks8, copy_blocks8_column
from threadloom.kernels.float32.packed_vector import add_packed, copy_packed_column
from threadloom.kernels.matmul import PackedBits
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
def add_product(x: Floats, weight: Matrix, out: Floats) -> None:
    """Add ``x @ weight`` to `out`: x (I,), weight (I, O), out (O,)."""
    _add_product(x, weight, out)


@jit_kernel
def write_logits(weight: Matrix, h: Floats, logits: Floats) -> None:
    """Write the products of the rows of `weight` (V, C) and `h` (C,) to `logits` (V,)."""
    _write_logits(weight, h, logits)


@jit_kernel
def copy_row(weight: Matrix, number: int, target: Floats) -> None:
    """Copy a row of `weight` (V, C) to `target` (C,)."""
    _copy_row(weight, number, target)


@jit_kernel
def copy_rows(weight: Matrix, numbers: TokenIds, targets: Floats) -> None:
    """Copy the rows `numbers` (R,) of `weight` (V, C) to `targets` (R, C)."""
    for r in range(numbers.shape[0]):
        _copy_row(weight, numbers[r], targets[r])


@jit_kernel
def _add_rows(x: Floats, weight: FloatRow, out: Floats) -> None:
    """Eight rows of the weight per pass over `out`."""
    rows = weight.shape[0]
    eight = rows - rows % 8
    for i in range(0, eight, 8):
        w0, w1, w2, w3 = weight[i], weight[i + 1], weight[i + 2], weight[i + 3]
        w4, w5, w6, w7 = weight[i + 4], weight[i + 5], weight[i + 6], weight[i + 7]
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(out.shape[0]):
            low = x0 * load_element(w0, j) + x1 * load_element(w1, j) + x2 * load_element(w2, j)
            low += x3 * load_element(w3, j)
            high = x4 * load_element(w4, j) + x5 * load_element(w5, j) + x6 * load_element(w6, j)
            high += x7 * load_element(w7, j)
            out[j] += low + high
    for i in range(eight, rows):
        row, factor = weight[i], x[i]
        for j in range(out.shape[0]):
            out[j] += factor * load_element(row, j)


@jit_kernel
def _write_dots(weight: FloatRow, h: Floats, logits: Floats) -> None:
    for v in range(logits.shape[0]):
        logits[v] = dot(h, weight[v])


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
def start_product(bias: Floats, out: Floats) -> None:
    """Write `bias` to `out` (O,), to which `add_product` then adds; zeros if the bias has length 0."""
    for j in range(out.shape[0]):
        out[j] = _ZERO
    add_to(out, bias)


@jit_kernel
def add_to(target: Floats, term: Floats) -> None:
    """Add `term` to `target`, both (I,); a term of length 0 adds nothing."""
    for j in range(term.shape[0]):
        target[j] += term[j]


@jit_kernel
def attend(
    qkv: Floats, keys: FloatRow, values: FloatRow, count: int, heads: HeadCounts, scores: Floats, out: Floats
) -> None:
    """Write the attention of one query over the first `count` keys and values to `out` (H D,).

    `keys` and `values` are (context, K D); the query is the first H D elements of `qkv`.
    `scores` (context,) is scratch.
    """
    size = out.shape[0] // heads.query
    group = heads.query // heads.key_value
    scale = np.float32(1.0 / math.sqrt(size))
    for head in range(heads.query):
        q0, k0 = head * size, head // group * size
        q, target = qkv[q0 : q0 + size], out[q0 : q0 + size]
        for t in range(count):
            scores[t] = scale * dot(q, keys[t, k0 : k0 + size])
        largest = row_max(scores, count)
        total = _ZERO
        for t in range(count):
            e = exp32(scores[t] - largest)
            scores[t] = e
            total += e
        for j in range(size):
            target[j] = _ZERO
        for t in range(count):
            share, row = scores[t] / total, values[t, k0 : k0 + size]
            for j in range(size):
                target[j] += share * load_element(row, j)


@jit_kernel
def append_to_cache(qkv: Floats, cache: KVCache, layer: int, position: int) -> None:
    """Copy the keys and values of one row of `qkv` ((H + 2K) D,) to a position of the cache."""
    width = cache.keys.shape[2]
    first = qkv.shape[0] - 2 * width
    copy(qkv[first : first + width], cache.keys[layer, position])
    copy(qkv[first + width :], cache.values[layer, position])


@jit_kernel
def prefill_cache(qkv: Floats, first_row: int, length: int, cache: KVCache) -> None:
    """Fill positions 0 .. length - 1 of the cache from rows ``first_row ...`` of forward's `qkv` (L, R, (H + 2K) D)."""
    for n in range(qkv.shape[0]):
        for t in range(length):
            append_to_cache(qkv[n, first_row + t], cache, n, t)


@jit_kernel
def _write_product(weight: Matrix, h: Floats, logits: Floats) -> None:
    for v in range(logits.shape[0]):
        logits[v] = _ZERO
    add_product(h, weight, logits)


@jit_kernel
def _copy_float_row(weight: Floats, number: int, target: Floats) -> None:
    copy(weight[number], target)


_ADD: dict[str, Any] = {"float32": _add_rows, "uint32": add_packed, "int8": add_blocks8}
_WRITE: dict[str, Any] = {"float32": _write_dots, "uint32": _write_product, "int8": _write_product}
_COPY: dict[str, Any] = {"float32": _copy_float_row, "uint32": copy_packed_column, "int8": copy_blocks8_column}


def _add_product(x: Floats, weight: Any, out: Floats) -> None:
    _ADD[str(weight.dtype)](x, weight, out)


def _write_logits(weight: Any, h: Floats, logits: Floats) -> None:
    _WRITE[str(weight.dtype)](weight, h, logits)


def _copy_row(weight: Any, number: int, target: Floats) -> None:
    _COPY[str(weight.dtype)](weight, number, target)


@overload(_add_product, jit_options=OVERLOAD_OPTIONS)
def _add_product_compiled(x: Any, weight: Any, out: Any) -> Any:
    kernel = _ADD[str(weight.dtype)]

    def compiled(x: Any, weight: Any, out: Any) -> Any:
        kernel(x, weight, out)

    return compiled


@overload(_write_logits, jit_options=OVERLOAD_OPTIONS)
def _write_logits_compiled(weight: Any, h: Any, logits: Any) -> Any:
    kernel = _WRITE[str(weight.dtype)]

    def compiled(weight: Any, h: Any, logits: Any) -> Any:
        kernel(weight, h, logits)

    return compiled


@overload(_copy_row, jit_options=OVERLOAD_OPTIONS)
def _copy_row_compiled(weight: Any, number: Any, target: Any) -> Any:
    kernel = _COPY[str(weight.dtype)]

    def compiled(weight: Any, number: Any, target: Any) -> Any:
        kernel(weight, number, target)

    return compiled
