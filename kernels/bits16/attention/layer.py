"""Causal self-attention on 16-bit numbers: `kernels.float32.attention` with operands of bfloat16 or float16.

After FlashAttention (Dao et al., 2022; 2023, algorithms 1 and 2), with its rule of what is rounded: scores, softmax,
statistics and all sums are float32; probabilities and the gradients of the scores are rounded to the 16-bit format
before they are multiplied; results are rounded once. The arrays hold bits, and the integer type says the format:
uint16 is bfloat16, int16 is float16 (see `kernels.simd.scalar`).

bfloat16 has products of its own. float16 is for machines and models that ask for it, not for speed: here a head is
widened to float32 and goes through float32's product.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from threadloom.kernels.bits16.attention.backward import backward_bf16
from threadloom.kernels.bits16.attention.forward import forward_bf16
from threadloom.kernels.bits16.attention.scratch import ATTENTION_BLOCK, AttentionScratch, attention_scratch_shapes
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel
from threadloom.kernels.matmul import Op, gemm
from threadloom.kernels.simd import Bits16, exp32, load16, round_to_bf16, row_max, store16, upcast_bf16

__all__ = ["AttentionScratch", "attention_backward_low", "attention_forward_low", "attention_scratch_shapes"]

_BLOCK = 16  # a row's exponentials are made in whole blocks of so many, to stay in vector code
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@jit_kernel
def _widen(source: Bits16, first: int, column: int, rows: int, out: Floats) -> None:
    """Write the head at `column`, of so many rows from `first` on, to `out` (rows, D)."""
    # The loops index whole rows: a slice of columns would have a stride that the compiler does not know to be 1.
    for i in range(rows):
        line, target = source[first + i], out[i]
        for j in range(out.shape[1]):
            target[j] = load16(line, column + j)


@jit_kernel
def _round(source: Floats, rows: int, size: int, out: Bits16, first: int, column: int) -> None:
    """Round `source` into the head at `column`."""
    for i in range(rows):
        line, target = source[i], out[first + i]
        for j in range(size):
            store16(target, column + j, line[j])


@jit_kernel
def _round_rows(scores: Floats, bits: Bits16, queries: int, keys: int) -> None:
    """Give the numbers of a tile the precision of the 16-bit format; `bits` is a row of it."""
    for i in range(queries):
        row = scores[i]
        for j in range(keys):
            store16(bits, j, row[j])
        for j in range(keys):
            row[j] = load16(bits, j)


@jit_kernel
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


@jit_kernel
def _d_score_rows(
    scratch: AttentionScratch,
    lse: Floats,
    out: Bits16,
    d_out: Bits16,
    top: int,
    column: int,
    size: int,
    queries: int,
    keys: int,
) -> None:
    """Turn scores into probabilities again, and their gradients into those of the scores: ``p (dp - sum(d_o o))``."""
    for i in range(queries):
        p, dp, o, d_o = scratch.scores[i], scratch.d_scores[i], out[top + i], d_out[top + i]
        delta = _ZERO
        for j in range(size):
            delta += load16(o, column + j) * load16(d_o, column + j)
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


@jit_kernel
def _forward_widened(
    qkv: Bits16, sequences: int, heads: int, out: Bits16, lse: Floats, scratch: AttentionScratch
) -> None:
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    bits = scratch.p_bits[0].view(qkv.dtype)
    for b in range(sequences):
        begin = b * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            _widen(qkv, begin, q0, length, scratch.widened[0])
            _widen(qkv, begin, k0, length, scratch.widened[1])
            _widen(qkv, begin, v0, length, scratch.widened[2])
            for first in range(0, length, ATTENTION_BLOCK):
                keys = min(first + ATTENTION_BLOCK, length)
                queries = keys - first
                tile, o = scratch.scores[:queries, :keys], scratch.result[:queries, :size]
                gemm(scratch.widened[0][first:keys], scratch.widened[1][:keys], tile, Op.N, Op.T, scale, 0.0)
                _softmax_rows(scratch.scores, lse[b, head, first:keys], queries, keys)
                _round_rows(scratch.scores, bits, queries, keys)
                gemm(tile, scratch.widened[2][:keys], o, Op.N, Op.N, 1.0, 0.0)
                _round(scratch.result, queries, size, out, begin + first, q0)


@jit_kernel
def _backward_widened(
    d_out: Bits16,
    out: Bits16,
    qkv: Bits16,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    channels = out.shape[1]
    size = channels // heads
    length = out.shape[0] // sequences
    scale = 1.0 / math.sqrt(size)
    tiles = (length + ATTENTION_BLOCK - 1) // ATTENTION_BLOCK
    bits = scratch.p_bits[0].view(qkv.dtype)
    for b in range(sequences):
        begin = b * length
        for head in range(heads):
            q0 = head * size
            k0, v0 = channels + q0, 2 * channels + q0
            _widen(qkv, begin, q0, length, scratch.widened[0])
            _widen(qkv, begin, k0, length, scratch.widened[1])
            _widen(qkv, begin, v0, length, scratch.widened[2])
            _widen(d_out, begin, q0, length, scratch.widened[3])
            beta = 0.0
            for backwards in range(tiles):  # the last tile sees every key: it writes what the others add to
                first = (tiles - 1 - backwards) * ATTENTION_BLOCK
                keys = min(first + ATTENTION_BLOCK, length)
                queries = keys - first
                top = begin + first
                p, ds = scratch.scores[:queries, :keys], scratch.d_scores[:queries, :keys]
                q, d_o, dq = (
                    scratch.widened[0][first:keys],
                    scratch.widened[3][first:keys],
                    scratch.result[:queries, :size],
                )
                gemm(q, scratch.widened[1][:keys], p, Op.N, Op.T, scale, 0.0)
                gemm(d_o, scratch.widened[2][:keys], ds, Op.N, Op.T, 1.0, 0.0)
                _d_score_rows(scratch, lse[b, head, first:keys], out, d_out, top, q0, size, queries, keys)
                _round_rows(scratch.scores, bits, queries, keys)
                _round_rows(scratch.d_scores, bits, queries, keys)
                gemm(p, d_o, scratch.widened[5][:keys], Op.T, Op.N, 1.0, beta)
                gemm(ds, q, scratch.widened[4][:keys], Op.T, Op.N, scale, beta)
                gemm(ds, scratch.widened[1][:keys], dq, Op.N, Op.N, scale, 0.0)
                _round(scratch.result, queries, size, d_qkv, top, q0)
                beta = 1.0
            _round(scratch.widened[4], length, size, d_qkv, begin, k0)
            _round(scratch.widened[5], length, size, d_qkv, begin, v0)


def _heads_of(matrix: Any, sequences: int, heads: int) -> NDArray[np.float32]:
    """Return (B, H, T, D) float32 of (R, C) 16-bit numbers, by NumPy."""
    wide = upcast_bf16(matrix) if matrix.dtype == np.uint16 else matrix.view(np.float16).astype(np.float32)
    return wide.reshape(sequences, matrix.shape[0] // sequences, heads, -1).transpose(0, 2, 1, 3)


def _bits_of(values: Floats, kind: np.dtype[Any]) -> Any:
    """Return float32 numbers rounded to a 16-bit format, as bits, by NumPy."""
    if kind == np.uint16:
        return round_to_bf16(values)
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.int16)


def _rounded_as(values: Floats, kind: np.dtype[Any]) -> Floats:
    bits = _bits_of(values, kind)
    return upcast_bf16(bits) if kind == np.uint16 else bits.view(np.float16).astype(np.float32)


def _rows_of(values: Floats, kind: np.dtype[Any]) -> Any:
    """Return the 16-bit rows (R, C) of (B, H, T, D) float32."""
    sequences, heads, length, size = values.shape
    return _bits_of(values.transpose(0, 2, 1, 3).reshape(sequences * length, heads * size), kind)


def _forward(qkv: Any, sequences: Any, heads: Any, out: Any, lse: Any, scratch: Any) -> None:
    """Do it by NumPy where the compiler is off; compiled code takes the kernel of the arrays' format."""
    q, k, v = (_heads_of(part, sequences, heads) for part in np.split(qkv, 3, axis=1))
    scores = q @ k.swapaxes(2, 3) / np.float32(math.sqrt(q.shape[3]))
    scores[..., np.triu(np.ones(scores.shape[2:], bool), 1)] = -np.inf
    largest = scores.max(axis=3, keepdims=True)
    p = np.exp(scores - largest)
    total = p.sum(axis=3, keepdims=True)
    lse[...] = (largest + np.log(total))[..., 0]
    out[...] = _rows_of(_rounded_as(p, qkv.dtype) @ v / total, qkv.dtype)


def _backward(d_out: Any, out: Any, qkv: Any, lse: Any, sequences: Any, heads: Any, d_qkv: Any, scratch: Any) -> None:
    """Do it by NumPy where the compiler is off; compiled code takes the kernel of the arrays' format."""
    q, k, v = (_heads_of(part, sequences, heads) for part in np.split(qkv, 3, axis=1))
    d_o, o = _heads_of(d_out, sequences, heads), _heads_of(out, sequences, heads)
    scale = np.float32(1 / math.sqrt(q.shape[3]))
    scores = q @ k.swapaxes(2, 3) * scale
    scores[..., np.triu(np.ones(scores.shape[2:], bool), 1)] = -np.inf
    p = np.exp(scores - lse[..., None])
    ds = _rounded_as(p * (d_o @ v.swapaxes(2, 3) - (d_o * o).sum(axis=3, keepdims=True)), qkv.dtype)
    p = _rounded_as(p, qkv.dtype)
    parts = (ds @ k * scale, ds.swapaxes(2, 3) @ q * scale, p.swapaxes(2, 3) @ d_o)
    d_qkv[...] = np.concatenate([_rows_of(part, qkv.dtype) for part in parts], axis=1)


@overload(_forward, inline="always")
def _choose_forward(qkv: Any, sequences: Any, heads: Any, out: Any, lse: Any, scratch: Any) -> Any:
    run: Any = forward_bf16 if qkv.dtype == types.uint16 else _forward_widened

    def forward(qkv: Any, sequences: Any, heads: Any, out: Any, lse: Any, scratch: Any) -> None:
        run(qkv, sequences, heads, out, lse, scratch)

    return forward


@overload(_backward, inline="always")
def _choose_backward(
    d_out: Any, out: Any, qkv: Any, lse: Any, sequences: Any, heads: Any, d_qkv: Any, scratch: Any
) -> Any:
    run: Any = backward_bf16 if qkv.dtype == types.uint16 else _backward_widened

    def backward(
        d_out: Any, out: Any, qkv: Any, lse: Any, sequences: Any, heads: Any, d_qkv: Any, scratch: Any
    ) -> None:
        run(d_out, out, qkv, lse, sequences, heads, d_qkv, scratch)

    return backward


@jit_inline_body
def attention_forward_low(
    qkv: Bits16, sequences: int, heads: int, out: Bits16, lse: Floats, scratch: AttentionScratch
) -> None:
    """Write the heads' outputs to `out` (R, C), and to `lse` (B, H, T) float32 the log of each row's sum.

    ``out = softmax(q k.T / sqrt(D) + mask) v`` for each head: qkv (R, 3C) holds q, k and v side by side, each of them
    the heads side by side (Vaswani et al., 2017, equation 1). qkv and out are bits of one 16-bit format.
    """
    _forward(qkv, sequences, heads, out, lse, scratch)


@jit_inline_body
def attention_backward_low(
    d_out: Bits16,
    out: Bits16,
    qkv: Bits16,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    """Write the gradient of `qkv` (R, 3C) to `d_qkv`, from that of the output, `d_out` (R, C), and what forward kept.

    All but `lse` (float32) are bits of one 16-bit format.
    """
    _backward(d_out, out, qkv, lse, sequences, heads, d_qkv, scratch)
