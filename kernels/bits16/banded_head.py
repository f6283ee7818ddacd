"""Output projection of low rank by bands, and softmax cross-entropy, in bfloat16: `kernels.float32.banded_head`.

The inner products ``h @ P_b.T`` and their gradients are rounded once.
"""

from typing import NamedTuple

from threadloom.kernels.bits16.cross_entropy import loss_backward
from threadloom.kernels.bits16.linear import (
    linear_backward_weight,
    linear_forward,
    linear_residual_forward,
    product,
    product_with_transpose,
)
from threadloom.kernels.bits16.tensors import Fp16UpcastScratch, PackedPair, PackedWeight, SecondProduct
from threadloom.kernels.common import (
    HEAD_SLICE,
    AccumulationTicket,
    BandFactors,
    Bands,
    LossTerms,
    band_basis,
    band_rows,
    cross_entropy_forward,
    last_head_part,
    mark_part_done,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel, jit_strict_inline
from threadloom.kernels.matmul import PANEL, transpose_bf16
from threadloom.kernels.simd import Bits16


class PackedFactors(NamedTuple):
    """Packed factors of all bands, flat: ``Bands.row_word`` and ``basis_word`` are the places of those of one."""

    rows: PackedPair  # A_b (V_b, E_b)
    bases: PackedPair  # P_b (E_b, C)


class BandedScratch(NamedTuple):
    """Scratch of `banded_backward`; flat arrays have room for the rows of a chunk times the sum of the ranks."""

    logits: Floats  # (rows of one chunk, V)
    d_logits: Bits16  # (rows of one chunk, V)
    d_logits_t: Bits16  # (columns of one slice, rows of one chunk)
    u: Bits16  # flat: h @ P_b.T
    du: Bits16  # flat: its gradient
    transposed: Bits16  # (at least E_b, at least rows of one chunk)
    upcast: Fp16UpcastScratch  # not read


@jit_strict_inline
def packed_matrix(words: PackedWeight, start: int, inner: int, columns: int) -> PackedWeight:
    """Return the packed matrix (inner, columns) that begins at the word `start`."""
    panels, pairs = (columns + PANEL - 1) // PANEL, (inner + PANEL - 1) // PANEL * (PANEL // 2)
    return words[start : start + panels * pairs * PANEL].reshape((panels, pairs, PANEL))


@jit_kernel
def _inner(space: Bits16, bands: Bands, b: int, rows: int) -> Bits16:
    """Return the place of ``h @ P_b.T``, or of its gradient, (rows, E_b); those of all bands do not overlap."""
    start, size = bands.column[b] * rows, bands.rank[b] * rows
    return space[start : start + size].reshape((rows, bands.rank[b]))


@jit_inline_body
def _nothing(b: PackedWeight, like: Bits16) -> SecondProduct:
    """Return no second product."""
    return SecondProduct(like[:0].reshape((0, 0)), b)


@jit_kernel
def _scores(
    h: Bits16, factors: PackedFactors, bands: Bands, u: Bits16, logits: Floats, upcast: Fp16UpcastScratch
) -> None:
    """Write the logits of all bands to `logits` (rows, V), and ``h @ P_b.T`` to `u`: h (rows, C)."""
    rows, channels = h.shape
    for b in range(bands.rank.shape[0]):
        of_band, rank = logits[:, bands.first[b] : bands.last[b]], bands.rank[b]
        rows_t = packed_matrix(factors.rows.packed_t, bands.row_word[b], rank, bands.last[b] - bands.first[b])
        if rank == channels:
            product_with_transpose(h, rows_t, of_band, upcast)
        else:
            inner = _inner(u, bands, b, rows)
            basis_t = packed_matrix(factors.bases.packed_t, bands.basis_word[b], channels, rank)
            linear_forward(h, basis_t, _nothing(basis_t, u), upcast.a[:0], inner, upcast)
            product_with_transpose(inner, rows_t, of_band, upcast)


@jit_kernel
def _add_product(a: Bits16, b: PackedWeight, out: Floats, first: bool, upcast: Fp16UpcastScratch) -> None:
    """Add ``a @ B`` to the float32 `out`, or write it if it is the `first`."""
    if first:
        product(a, b, out, upcast)
    else:
        linear_residual_forward(a, b, SecondProduct(a[:, :0], b), out, upcast)


@jit_kernel
def _backward_input(
    d_logits: Bits16, factors: PackedFactors, bands: Bands, du: Bits16, dh: Floats, upcast: Fp16UpcastScratch
) -> None:
    """Write the gradient of h to `dh` (rows, C), and that of ``h @ P_b.T`` to `du`."""
    rows, channels = dh.shape
    for b in range(bands.rank.shape[0]):
        of_band, rank, is_first = d_logits[:, bands.first[b] : bands.last[b]], bands.rank[b], b == 0
        packed = packed_matrix(factors.rows.packed, bands.row_word[b], bands.last[b] - bands.first[b], rank)
        if rank == channels:
            _add_product(of_band, packed, dh, is_first, upcast)
        else:
            d_inner = _inner(du, bands, b, rows)
            linear_forward(of_band, packed, _nothing(packed, du), upcast.a[:0], d_inner, upcast)
            basis = packed_matrix(factors.bases.packed, bands.basis_word[b], rank, channels)
            _add_product(d_inner, basis, dh, is_first, upcast)


@jit_kernel
def _backward_rows(
    d_logits: Bits16, h: Bits16, scratch: BandedScratch, bands: Bands, v0: int, v1: int, grads: BandFactors, adds: bool
) -> None:
    """Write, or add if `adds`, the gradients of the rows of the tokens `v0` … `v1` - 1, a slice of the vocabulary."""
    rows, channels = h.shape
    for b in range(bands.rank.shape[0]):
        first, last = max(v0, bands.first[b]), min(v1, bands.last[b])
        if first < last:
            turned = scratch.d_logits_t[: last - first, :rows]
            transpose_bf16(d_logits[:, first:last], turned)
            inner = h if bands.rank[b] == channels else _inner(scratch.u, bands, b, rows)
            d_rows = band_rows(grads, bands, b)[first - bands.first[b] : last - bands.first[b]]
            linear_backward_weight(turned, inner, d_rows, adds, scratch.upcast)


@jit_kernel
def _backward_bases(h: Bits16, scratch: BandedScratch, bands: Bands, grads: BandFactors, adds: bool) -> None:
    """Write, or add if `adds`, the gradients of the bases."""
    rows, channels = h.shape
    for b in range(bands.rank.shape[0]):
        if bands.rank[b] < channels:
            turned = scratch.transposed[: bands.rank[b], :rows]
            transpose_bf16(_inner(scratch.du, bands, b, rows), turned)
            linear_backward_weight(turned, h, band_basis(grads, bands, b, channels), adds, scratch.upcast)


@jit_inline_body
def banded_loss(
    h: Bits16,
    factors: PackedFactors,
    bands: Bands,
    targets: TokenIds,
    logits: Floats,
    u: Bits16,
    upcast: Fp16UpcastScratch,
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient: h (R, C).

    As `kernels.float32.banded_head.banded_loss`.
    """
    rows, chunk = h.shape[0], logits.shape[0]
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = logits[: last - first]
        _scores(h[first:last], factors, bands, u, part, upcast)
        total += cross_entropy_forward(part, targets[first:last])
    return total


@jit_inline_body
def banded_backward(
    h: Bits16,
    factors: PackedFactors,
    bands: Bands,
    targets: TokenIds,
    scale: float,
    terms: LossTerms,
    grads: BandFactors,
    dh: Floats,
    scratch: BandedScratch,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to the float32 `dh`, both (R, C).

    As `kernels.float32.banded_head.banded_backward`.
    """
    s = scratch
    rows, chunk, slice_width, vocabulary = h.shape[0], s.logits.shape[0], s.d_logits_t.shape[0], s.logits.shape[1]
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        logits, d_logits, part_h = s.logits[: last - first], s.d_logits[: last - first], h[first:last]
        _scores(part_h, factors, bands, s.u, logits, s.upcast)
        total += loss_backward(logits, targets[first:last], scale, terms, d_logits)
        _backward_input(d_logits, factors, bands, s.du, dh[first:last], s.upcast)
        for v0 in range(0, vocabulary, slice_width):
            v1 = min(v0 + slice_width, vocabulary)
            wait_for_predecessor(ticket, (v1 - 1) // HEAD_SLICE)
            _backward_rows(d_logits, part_h, s, bands, v0, v1, grads, adds)
            if last == rows and v1 % HEAD_SLICE == 0 and v1 < vocabulary:
                mark_part_done(ticket, v0 // HEAD_SLICE)
        wait_for_predecessor(ticket, last_head_part(vocabulary))
        _backward_bases(part_h, s, bands, grads, adds)
        adds = True
    return total
