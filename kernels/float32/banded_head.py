"""Output projection of low rank by bands, and softmax cross-entropy, in float32.

The projection is that of `kernels.float32.head` with ``weight = [A_b @ P_b]`` (`kernels.common.bands`), which is never
formed: the scores of a band are ``(h @ P_b.T) @ A_b.T``, 2 E_b (C + V_b) operations per row instead of 2 C V_b. The
softmax is the exact one over the whole vocabulary.
"""

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
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.float32.cross_entropy import loss_backward
from threadloom.kernels.float32.linear import linear_backward_weight, logits_backward_input, logits_forward
from threadloom.kernels.matmul import Op, gemm


@jit_kernel
def _inner(space: Floats, bands: Bands, b: int, rows: int) -> Floats:
    """Return the place of ``h @ P_b.T``, or of its gradient, (rows, E_b); those of all bands do not overlap."""
    start, size = bands.column[b] * rows, bands.rank[b] * rows
    return space[start : start + size].reshape((rows, bands.rank[b]))


@jit_kernel
def _scores(h: Floats, factors: BandFactors, bands: Bands, u: Floats, logits: Floats) -> None:
    """Write the logits of all bands to `logits` (rows, V), and ``h @ P_b.T`` to `u`: h (rows, C)."""
    rows, channels = h.shape
    for b in range(bands.rank.shape[0]):
        of_band = logits[:, bands.first[b] : bands.last[b]]
        if bands.rank[b] == channels:
            logits_forward(h, band_rows(factors, bands, b), of_band)
        else:
            inner = _inner(u, bands, b, rows)
            logits_forward(h, band_basis(factors, bands, b, channels), inner)
            logits_forward(inner, band_rows(factors, bands, b), of_band)


@jit_kernel
def _backward_input(d_logits: Floats, factors: BandFactors, bands: Bands, du: Floats, dh: Floats) -> None:
    """Write the gradient of h to `dh` (rows, C), and that of ``h @ P_b.T`` to `du`."""
    rows, channels = dh.shape
    for b in range(bands.rank.shape[0]):
        of_band, beta = d_logits[:, bands.first[b] : bands.last[b]], 0.0 if b == 0 else 1.0
        if bands.rank[b] == channels:
            gemm(of_band, band_rows(factors, bands, b), dh, Op.N, Op.N, 1.0, beta)
        else:
            d_inner = _inner(du, bands, b, rows)
            logits_backward_input(of_band, band_rows(factors, bands, b), d_inner)
            gemm(d_inner, band_basis(factors, bands, b, channels), dh, Op.N, Op.N, 1.0, beta)


@jit_kernel
def _backward_rows(
    d_logits: Floats, h: Floats, u: Floats, bands: Bands, first: int, last: int, grads: BandFactors, accumulate: bool
) -> None:
    """Write, or add when `accumulate`, the gradients of the rows of the tokens `first` … `last` - 1."""
    rows, channels = h.shape
    for b in range(bands.rank.shape[0]):
        v0, v1 = max(first, bands.first[b]), min(last, bands.last[b])
        if v0 < v1:
            d_rows = band_rows(grads, bands, b)[v0 - bands.first[b] : v1 - bands.first[b]]
            inner = h if bands.rank[b] == channels else _inner(u, bands, b, rows)
            linear_backward_weight(d_logits[:, v0:v1], inner, d_rows, accumulate)


@jit_kernel
def _backward_bases(h: Floats, du: Floats, bands: Bands, grads: BandFactors, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the gradients of the bases."""
    rows, channels = h.shape
    for b in range(bands.rank.shape[0]):
        if bands.rank[b] < channels:
            linear_backward_weight(_inner(du, bands, b, rows), h, band_basis(grads, bands, b, channels), accumulate)


@jit_inline_body
def banded_loss(h: Floats, factors: BandFactors, bands: Bands, targets: TokenIds, logits: Floats, u: Floats) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient: h (R, C).

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`. Scratch: `logits` (rows of a chunk, V), and `u`, flat, for the
    rows of a chunk times the sum of the ranks.
    """
    rows, chunk = h.shape[0], logits.shape[0]
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = logits[: last - first]
        _scores(h[first:last], factors, bands, u, part)
        total += cross_entropy_forward(part, targets[first:last])
    return total


@jit_inline_body
def banded_backward(
    h: Floats,
    factors: BandFactors,
    bands: Bands,
    targets: TokenIds,
    scale: float,
    terms: LossTerms,
    grads: BandFactors,
    dh: Floats,
    logits: Floats,
    u: Floats,
    du: Floats,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of `h` to `dh`, both (R, C).

    As `projection_backward`, with the gradients of the factors instead of the weight's; those of the bases belong to
    the last part of the `ticket`. `du` is scratch as `u` of `banded_loss`.
    """
    rows, chunk, vocabulary = h.shape[0], logits.shape[0], logits.shape[1]
    parts = last_head_part(vocabulary) + 1
    total = 0.0
    adds = ticket.accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part_logits, part_h = logits[: last - first], h[first:last]
        _scores(part_h, factors, bands, u, part_logits)
        total += loss_backward(part_logits, targets[first:last], scale, terms)
        _backward_input(part_logits, factors, bands, du, dh[first:last])
        for part in range(parts):
            v0, v1 = part * HEAD_SLICE, min((part + 1) * HEAD_SLICE, vocabulary)
            wait_for_predecessor(ticket, part)
            _backward_rows(part_logits, part_h, u, bands, v0, v1, grads, adds)
            if last == rows and v1 < vocabulary:
                mark_part_done(ticket, part)
        _backward_bases(part_h, du, bands, grads, adds)
        adds = True
    return total
