"""Causal self-attention on 16-bit numbers: `kernels.attention` with operands of bfloat16 or float16.

After FlashAttention (Dao et al., 2022; 2023, algorithms 1 and 2), with its rule of what is rounded: scores, softmax,
statistics and all sums are float32; probabilities and the gradients of the scores are rounded to the 16-bit format
before they are multiplied; results are rounded once. The arrays hold bits, and the integer type says the format:
uint16 is bfloat16, int16 is float16 (see `kernels.lowp_scalar`).

bfloat16 has products of its own. float16 is for machines and models that ask for it, not for speed: here a head is
widened to float32 and goes through float32's product.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from kernels.blas import gemm
from kernels.exponential import exp32, row_max
from kernels.jit import kernel
from kernels.lowp_scalar import Short, load16, store16
from kernels.tensors import Floats

_TILE = 64  # queries of one head that are scored at a time
_BLOCK = 16  # a row's exponentials are made in whole blocks of so many, to stay in vector code
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class AttentionScratch(NamedTuple):
    """What forward and backward write on the way, for one thread: sizes from `attention_scratch_shapes`.

    The content does not matter before a call, and tells nothing after it.
    """

    scores: Floats  # (TILE, context), padded to whole blocks
    d_scores: Floats  # the same
    bits: Short  # (context,) uint16, padded: a row that is being rounded
    q: Floats  # (context, D) a head's queries, and so on: widened
    k: Floats
    v: Floats
    d_o: Floats
    dq: Floats  # (TILE, D)
    dk: Floats  # (context, D)
    dv: Floats  # (context, D)


def attention_scratch_shapes(context: int, head_size: int) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Return the shape and the type of each array of `AttentionScratch`, for up to `context` tokens a sequence."""
    padded = context + -context % _BLOCK
    head = ((context, head_size), np.float32)
    return {
        "scores": ((_TILE, padded), np.float32),
        "d_scores": ((_TILE, padded), np.float32),
        "bits": ((padded,), np.uint16),
        "q": head,
        "k": head,
        "v": head,
        "d_o": head,
        "dq": ((_TILE, head_size), np.float32),
        "dk": head,
        "dv": head,
    }


@kernel
def _widen(source: Short, out: Floats) -> None:
    """Write the 16-bit numbers of `source` to the first rows of `out`."""
    rows, columns = source.shape
    for i in range(rows):
        line, target = source[i], out[i]
        for j in range(columns):
            target[j] = load16(line, j)


@kernel
def _round(source: Floats, out: Short) -> None:
    """Round the first rows of `source` into `out`."""
    rows, columns = out.shape
    for i in range(rows):
        line, target = source[i], out[i]
        for j in range(columns):
            store16(target, j, line[j])


@kernel
def _round_rows(scores: Floats, bits: Short, queries: int, keys: int) -> None:
    """Give the numbers of a tile the precision of the 16-bit format; `bits` is a row of it."""
    for i in range(queries):
        row = scores[i]
        for j in range(keys):
            store16(bits, j, row[j])
        for j in range(keys):
            row[j] = load16(bits, j)


@kernel
def _softmax_rows(scores: Floats, lse: Floats, queries: int, keys: int) -> None:
    """Turn scores into probabilities; query i sees the keys up to ``keys - queries + i``, others get 0."""
    for i in range(queries):
        row = scores[i]
        seen = keys - queries + i + 1
        end = min(keys, seen + -seen % _BLOCK)
        largest = row_max(row, seen)
        for j in range(seen, end):
            row[j] = -np.inf
        total = _ZERO
        for j in range(end):
            e = exp32(row[j] - largest)
            row[j] = e
            total += e
        share = _ONE / total
        for j in range(end):
            row[j] *= share
        for j in range(end, keys):
            row[j] = _ZERO
        lse[i] = largest + np.float32(math.log(total))


@kernel
def _d_score_rows(
    scores: Floats, d_scores: Floats, lse: Floats, out: Short, d_out: Short, queries: int, keys: int
) -> None:
    """Turn scores into probabilities again, and their gradients into those of the scores: ``p (dp - sum(d_o o))``."""
    size = out.shape[1]
    for i in range(queries):
        p, dp, o, d_o = scores[i], d_scores[i], out[i], d_out[i]
        delta = _ZERO
        for j in range(size):
            delta += load16(o, j) * load16(d_o, j)
        seen = keys - queries + i + 1
        end = min(keys, seen + -seen % _BLOCK)
        for j in range(seen, end):
            p[j] = -np.inf
        shift = lse[i]
        for j in range(end):
            e = exp32(p[j] - shift)
            p[j] = e
            dp[j] = e * (dp[j] - delta)
        for j in range(end, keys):
            p[j] = _ZERO
            dp[j] = _ZERO


@kernel
def _forward_widened(
    qkv: Short, sequences: int, heads: int, out: Short, lse: Floats, scratch: AttentionScratch
) -> None:
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    bits = scratch.bits.view(qkv.dtype)
    for b in range(sequences):
        begin, end = b * length, (b + 1) * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            _widen(qkv[begin:end, q0 : q0 + size], scratch.q)
            _widen(qkv[begin:end, k0 : k0 + size], scratch.k)
            _widen(qkv[begin:end, v0 : v0 + size], scratch.v)
            for first in range(0, length, _TILE):
                keys = min(first + _TILE, length)
                queries = keys - first
                tile, o = scratch.scores[:queries, :keys], scratch.dq[:queries]
                gemm(scratch.q[first:keys], scratch.k[:keys], tile, False, True, scale, 0.0)
                _softmax_rows(tile, lse[b, head, first:keys], queries, keys)
                _round_rows(tile, bits, queries, keys)
                gemm(tile, scratch.v[:keys], o, False, False, 1.0, 0.0)
                _round(o, out[begin + first : begin + keys, q0 : q0 + size])


@kernel
def _backward_widened(
    d_out: Short,
    out: Short,
    qkv: Short,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Short,
    scratch: AttentionScratch,
) -> None:
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    tiles = (length + _TILE - 1) // _TILE
    bits = scratch.bits.view(qkv.dtype)
    for b in range(sequences):
        begin, end = b * length, (b + 1) * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            _widen(qkv[begin:end, q0 : q0 + size], scratch.q)
            _widen(qkv[begin:end, k0 : k0 + size], scratch.k)
            _widen(qkv[begin:end, v0 : v0 + size], scratch.v)
            _widen(d_out[begin:end, q0 : q0 + size], scratch.d_o)
            beta = 0.0
            for backwards in range(tiles):  # the last tile sees every key: it writes what the others add to
                first = (tiles - 1 - backwards) * _TILE
                keys = min(first + _TILE, length)
                queries = keys - first
                top, bottom = begin + first, begin + keys
                p, ds = scratch.scores[:queries, :keys], scratch.d_scores[:queries, :keys]
                q, d_o, dq = scratch.q[first:keys], scratch.d_o[first:keys], scratch.dq[:queries]
                gemm(q, scratch.k[:keys], p, False, True, scale, 0.0)
                gemm(d_o, scratch.v[:keys], ds, False, True, 1.0, 0.0)
                o_rows, d_o_rows = out[top:bottom, q0 : q0 + size], d_out[top:bottom, q0 : q0 + size]
                _d_score_rows(p, ds, lse[b, head, first:keys], o_rows, d_o_rows, queries, keys)
                _round_rows(p, bits, queries, keys)
                _round_rows(ds, bits, queries, keys)
                gemm(p, d_o, scratch.dv[:keys], True, False, 1.0, beta)
                gemm(ds, q, scratch.dk[:keys], True, False, scale, beta)
                gemm(ds, scratch.k[:keys], dq, False, False, scale, 0.0)
                _round(dq, d_qkv[top:bottom, q0 : q0 + size])
                beta = 1.0
            _round(scratch.dk, d_qkv[begin:end, k0 : k0 + size])
            _round(scratch.dv, d_qkv[begin:end, v0 : v0 + size])


@kernel
def attention_forward_low(
    qkv: Short, sequences: int, heads: int, out: Short, lse: Floats, scratch: AttentionScratch
) -> None:
    """Write the heads' outputs to `out` (R, C), and to `lse` (B, H, T) float32 the log of each row's sum.

    ``out = softmax(q k.T / sqrt(D) + mask) v`` for each head: qkv (R, 3C) holds q, k and v side by side, each of them
    the heads side by side (Vaswani et al., 2017, equation 1). qkv and out are bits of one 16-bit format.
    """
    _forward_widened(qkv, sequences, heads, out, lse, scratch)


@kernel
def attention_backward_low(
    d_out: Short,
    out: Short,
    qkv: Short,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Short,
    scratch: AttentionScratch,
) -> None:
    """Write the gradient of `qkv` (R, 3C) to `d_qkv`, from that of the output, `d_out` (R, C), and what forward kept.

    All but `lse` (float32) are bits of one 16-bit format.
    """
    _backward_widened(d_out, out, qkv, lse, sequences, heads, d_qkv, scratch)
