"""Dropout (Srivastava et al., 2014) in every number format: of embeddings, in the blocks, of the inputs of adapters.

The probabilities of attention of a query head are an array (R, T): column t is the key of token t of the row's
sequence. Only the tiles that attention computes of it exist.

Most trainings drop nothing, so the kernels that do are behind addresses and compiled when a run has dropout:
the others contain no more of them than a call.
"""

from enum import IntEnum
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from threadloom.kernels.common.dropout_mask import mask_of, masked, random_bits
from threadloom.kernels.common.tensors import NO_DROPOUT, Dropout, DropoutRates, LoraConstants, LoraSite
from threadloom.kernels.compiling import Entry, Floats, jit_inline_body, jit_kernel, jit_strict_inline, type_of
from threadloom.kernels.simd import FloatRow, load_element, store_element

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SITES = len(LoraSite)
_OUTPUT = 1 << 29  # number of the first output of a block; those of the inputs of adapters are smaller
_ATTENTION = 1 << 30  # number of the probabilities of the first query head
EMBEDDING_DROPOUT = 1 << 31
"""Number of the input embeddings among the arrays whose elements are dropped."""


class ResidualSite(IntEnum):
    """The outputs of a layer that are added to the residual stream."""

    ATTENTION = 0
    MLP = 1


@jit_inline_body
def dropout_of(constants: LoraConstants, key: NDArray[np.uint64], layer: int, site: LoraSite) -> Dropout:
    """Return the dropout of the input of a matrix, for a micro-batch with a key (1,)."""
    return Dropout(constants.dropout, key, _SITES * layer + site)


@jit_inline_body
def residual_dropout(rates: DropoutRates, key: NDArray[np.uint64], layer: int, site: ResidualSite) -> Dropout:
    """Return the dropout of an output of a layer, for a micro-batch with a key (1,)."""
    return Dropout(rates.residual, key, _OUTPUT + 2 * layer + site)


@jit_inline_body
def attention_dropout(rates: DropoutRates, key: NDArray[np.uint64], layer: int, heads: int) -> Dropout:
    """Return the dropout of the probabilities of the first of a layer's query heads; see `head_dropout`."""
    return Dropout(rates.attention, key, _ATTENTION + heads * layer)


@jit_inline_body
def head_dropout(dropout: Dropout, head: int) -> Dropout:
    """Return the dropout of the probabilities of a query head, given that of the layer's first one."""
    return Dropout(dropout.probability, dropout.key, dropout.matrix + head)


@jit_inline_body
def drops(dropout: Dropout) -> bool:
    """Return True if elements are dropped."""
    return dropout.probability > 0.0 and dropout.key[0] != 0


class _ForwardArgs(NamedTuple):
    """Arguments of `dropout_forward`."""

    x: FloatRow
    dropout: Dropout
    out: FloatRow


@jit_kernel
def _forward(p: _ForwardArgs) -> None:
    mask, width = mask_of(p.dropout), p.x.shape[1]
    for r in range(p.x.shape[0]):
        source, target = p.x[r], p.out[r]
        for j in range(width):
            store_element(target, j, masked(load_element(source, j), r * width + j, mask))


class _ResidualArgs(NamedTuple):
    """Arguments of `dropout_residual`."""

    y: FloatRow
    dropout: Dropout
    residual: Floats
    out: Floats


@jit_kernel
def _residual(p: _ResidualArgs) -> None:
    mask, width = mask_of(p.dropout), p.out.shape[1]
    for r in range(p.out.shape[0]):
        source, base, target = p.y[r], p.residual[r], p.out[r]
        for j in range(width):
            target[j] = base[j] + masked(load_element(source, j), r * width + j, mask)


class ElementNumbers(NamedTuple):
    """Numbers of the elements of a tile: ``first + row * i + column * j`` is that of element (i, j)."""

    first: int
    row: int
    column: int


class _TileArgs(NamedTuple):
    """Arguments of `dropout_tile`."""

    tile: FloatRow
    dropout: Dropout
    numbers: ElementNumbers
    rows: int
    columns: int
    factor: np.float32


@jit_kernel
def _tile(p: _TileArgs) -> None:
    mask = mask_of(p.dropout)
    for i in range(p.rows):
        row, first = p.tile[i], p.numbers.first + p.numbers.row * i
        for j in range(p.columns):
            random = random_bits(first + p.numbers.column * j, mask)
            store_element(row, j, load_element(row, j) * p.factor if random >= mask.threshold else _ZERO)


def _forward_type(source: DTypeLike, target: DTypeLike) -> Any:
    return type_of(_ForwardArgs(np.zeros((1, 1), source), NO_DROPOUT, np.zeros((1, 1), target)))


def _residual_type(dtype: DTypeLike) -> Any:
    sums = np.zeros((1, 1), np.float32)
    return type_of(_ResidualArgs(np.zeros((1, 1), dtype), NO_DROPOUT, sums, sums))


def _tile_type(dtype: DTypeLike) -> Any:
    return type_of(_TileArgs(np.zeros((1, 1), dtype), NO_DROPOUT, ElementNumbers(0, 0, 0), 0, 0, _ONE))


_FORMATS = np.float32, np.uint16, np.int16
_FORWARD_TYPES: dict[Any, list[Any]] = {  # sums, and what is rounded from sums, are dropped in every format
    dtype: [_forward_type(np.float32, np.float32), _forward_type(np.float32, dtype), _forward_type(dtype, dtype)]
    for dtype in _FORMATS
}
_FORWARD = Entry(
    "threadloom_dropout_forward", _forward, *chain.from_iterable(_FORWARD_TYPES.values()), prepares_itself=True
)
_RESIDUAL = Entry("threadloom_dropout_residual", _residual, *map(_residual_type, _FORMATS), prepares_itself=True)
_TILE_FORMATS = np.float32, np.uint16  # float16's tiles are float32
_TILE = Entry("threadloom_dropout_tile", _tile, *map(_tile_type, _TILE_FORMATS), prepares_itself=True)
_call_forward, _call_residual, _call_tile = _FORWARD.call, _RESIDUAL.call, _TILE.call


def prepare_dropout(dtype: DTypeLike) -> None:
    """Compile what dropout calls with activations of a dtype, or load it from the cache.

    The first call does it otherwise.
    """
    _FORWARD.prepare(*_FORWARD_TYPES[np.dtype(dtype).type])
    _RESIDUAL.prepare(_residual_type(dtype))
    _TILE.prepare(_tile_type(np.float32), _tile_type(dtype))


@jit_kernel
def dropout_forward(x: FloatRow, dropout: Dropout, out: FloatRow) -> None:
    """Write `x` (R, I) to `out`, with elements dropped and the others scaled."""
    _call_forward(_ForwardArgs(x, dropout, out))


@jit_kernel
def dropout_backward(d_out: Floats, dropout: Dropout, dx: FloatRow) -> None:
    """Add the gradient of `dropout_forward`'s input to `dx`, given that of its result, both (R, I)."""
    mask, width = mask_of(dropout), dx.shape[1]
    for r in range(dx.shape[0]):
        source, target = d_out[r], dx[r]
        for j in range(width):
            store_element(target, j, load_element(target, j) + masked(source[j], r * width + j, mask))


@jit_kernel
def dropout_residual(y: FloatRow, dropout: Dropout, residual: Floats, out: Floats) -> None:
    """Write `residual` plus `y`, with elements dropped and the others scaled, to `out`, all (R, C).

    `out` may be `residual`. If nothing is dropped, nothing is done.
    """
    if drops(dropout):
        _call_residual(_ResidualArgs(y, dropout, residual, out))


@jit_strict_inline
def kept_factor(dropout: Dropout) -> np.float32:
    """Return the factor of the elements that are not dropped."""
    return np.float32(1.0 / (1.0 - dropout.probability)) if drops(dropout) else _ONE


@jit_kernel
def dropout_tile(
    tile: FloatRow, dropout: Dropout, numbers: ElementNumbers, rows: int, columns: int, factor: np.float32
) -> None:
    """Drop elements of the first rows and columns of a tile, and multiply the others by `factor`.

    If nothing is dropped, nothing is done.
    """
    if drops(dropout):
        _call_tile(_TileArgs(tile, dropout, numbers, rows, columns, factor))
