"""Dropout (Srivastava et al., 2014) in every number format: of embeddings, in the blocks, of the inputs of adapters.

The mask is a function of counters: the key of the micro-batch, the array, and the number of the element. So the
backward pass computes it again, and it depends neither on threads nor on the order of the micro-batches. The generator
is two rounds of the finaliser of MurmurHash3 (Appleby, 2011), each between additions of 32 bits of the key.

The probabilities of attention of a query head are an array (R, T): column t is the key of token t of the row's
sequence. Only the tiles that attention computes of it exist.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common.tensors import Dropout, DropoutRates, LoraConstants, LoraSite
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel, jit_strict_inline
from threadloom.kernels.simd import FloatRow, load_element, store_element

_LOW = np.uint64(0xFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SITES = len(LoraSite)
_RESIDUAL = 1 << 29  # number of the first output of a block; those of the inputs of adapters are smaller
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
    return Dropout(rates.residual, key, _RESIDUAL + 2 * layer + site)


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


@jit_inline_body
def _multiply(a: np.uint32, b: np.uint32) -> np.uint32:
    return np.uint32((np.uint64(a) * np.uint64(b)) & _LOW)


@jit_inline_body
def _mix(h: np.uint32) -> np.uint32:
    """Return the finaliser of MurmurHash3's 32-bit variant."""
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = _multiply(h, np.uint32(0x85EBCA6B))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(13)))
    h = _multiply(h, np.uint32(0xC2B2AE35))
    return np.uint32(h ^ np.uint32(h >> np.uint32(16)))


@jit_inline_body
def _add(a: np.uint32, b: np.uint32) -> np.uint32:
    return np.uint32((np.uint64(a) + np.uint64(b)) & _LOW)


@jit_inline_body
def _matrix_key(dropout: Dropout) -> np.uint64:
    """Return 64 bits that no other matrix of the micro-batch has."""
    low = _mix(np.uint32((dropout.key[0] ^ np.uint64(dropout.matrix)) & _LOW))
    high = _mix(_add(np.uint32(dropout.key[0] >> np.uint64(32)), low))
    return np.uint64(np.uint64(high) << np.uint64(32)) | np.uint64(low)


@jit_inline_body
def _random(number: int, low: np.uint32, high: np.uint32) -> np.uint32:
    """Return 32 random bits of an element."""
    counter = np.uint32(np.uint64(number) & _LOW)
    return _mix(_add(_mix(_add(counter, low)), high))


class _Mask(NamedTuple):
    """Numbers from which the mask of a matrix follows."""

    low: np.uint32  # halves of the matrix's key
    high: np.uint32
    threshold: np.uint32  # elements with smaller random numbers are dropped
    factor: np.float32  # of the others


@jit_inline_body
def _mask_of(dropout: Dropout) -> _Mask:
    key, threshold = _matrix_key(dropout), np.uint32(dropout.probability * 4294967296.0)
    low, high = np.uint32(key & _LOW), np.uint32(key >> np.uint64(32))
    return _Mask(low, high, threshold, np.float32(1.0 / (1.0 - dropout.probability)))


@jit_inline_body
def _masked(value: np.float32, number: int, mask: _Mask) -> np.float32:
    """Return element `number`, dropped or scaled."""
    return value * mask.factor if _random(number, mask.low, mask.high) >= mask.threshold else _ZERO


@jit_kernel
def dropout_forward(x: FloatRow, dropout: Dropout, out: FloatRow) -> None:
    """Write `x` (R, I) to `out`, with elements dropped and the others scaled."""
    mask, width = _mask_of(dropout), x.shape[1]
    for r in range(x.shape[0]):
        source, target = x[r], out[r]
        for j in range(width):
            store_element(target, j, _masked(load_element(source, j), r * width + j, mask))


@jit_kernel
def dropout_backward(d_out: Floats, dropout: Dropout, dx: FloatRow) -> None:
    """Add the gradient of `dropout_forward`'s input to `dx`, given that of its result, both (R, I)."""
    mask, width = _mask_of(dropout), dx.shape[1]
    for r in range(dx.shape[0]):
        source, target = d_out[r], dx[r]
        for j in range(width):
            store_element(target, j, load_element(target, j) + _masked(source[j], r * width + j, mask))


@jit_kernel
def dropout_residual(y: FloatRow, dropout: Dropout, residual: Floats, out: Floats) -> None:
    """Write `residual` plus `y`, with elements dropped and the others scaled, to `out`, all (R, C).

    `out` may be `residual`. If nothing is dropped, nothing is done.
    """
    if not drops(dropout):
        return
    mask, width = _mask_of(dropout), out.shape[1]
    for r in range(out.shape[0]):
        source, base, target = y[r], residual[r], out[r]
        for j in range(width):
            target[j] = base[j] + _masked(load_element(source, j), r * width + j, mask)


class ElementNumbers(NamedTuple):
    """Numbers of the elements of a tile: ``first + row * i + column * j`` is that of element (i, j)."""

    first: int
    row: int
    column: int


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
    if not drops(dropout):
        return
    mask = _mask_of(dropout)
    for i in range(rows):
        row, first = tile[i], numbers.first + numbers.row * i
        for j in range(columns):
            random = _random(first + numbers.column * j, mask.low, mask.high)
            store_element(row, j, load_element(row, j) * factor if random >= mask.threshold else _ZERO)
