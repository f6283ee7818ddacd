"""Causal self-attention on 16-bit arrays by NumPy, for runs without the JIT compiler (``NUMBA_DISABLE_JIT=1``).

There are no teams without the compiler: the part of the heads is always all of them.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16.attention.scratch import AttentionScratch
from threadloom.kernels.common import (
    AttentionActivations,
    DocumentStarts,
    ElementNumbers,
    HeadCounts,
    Part,
    dropout_tile,
    head_dropout,
    kept_factor,
)
from threadloom.kernels.compiling import Floats
from threadloom.kernels.simd import Bits16, round_to_bf16, upcast_bf16


def _split_heads(matrix: Any, sequences: int, heads: int) -> NDArray[np.float32]:
    """Return a 16-bit matrix (R, heads * D) as float32 (B, heads, T, D)."""
    upcast = upcast_bf16(matrix) if matrix.dtype == np.uint16 else matrix.view(np.float16).astype(np.float32)
    return upcast.reshape(sequences, matrix.shape[0] // sequences, heads, -1).transpose(0, 2, 1, 3)


def _split_qkv(qkv: Any, sequences: int, heads: HeadCounts) -> tuple[Floats, Floats, Floats]:
    """Return queries, keys and values as float32 (B, H, T, D), the last two repeated for each query head."""
    parts = _split_heads(qkv, sequences, heads.query + 2 * heads.key_value)
    q, k, v = np.split(parts, [heads.query, heads.query + heads.key_value], axis=1)
    group = heads.query // heads.key_value
    return q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)


def _group_sums(values: Floats, heads: HeadCounts) -> Floats:
    """Return the sums of (B, H, T, D) over the query heads of each group, (B, K, T, D)."""
    sequences, _, length, size = values.shape
    sums: Floats = values.reshape(sequences, heads.key_value, -1, length, size).sum(axis=2)
    return sums


def _to_bits(values: Floats, dtype: np.dtype[Any]) -> Any:
    """Return float32 values rounded to the 16-bit format of `dtype`, as its bits."""
    if dtype == np.uint16:
        return round_to_bf16(values)
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.int16)


def _rounded(values: Floats, dtype: np.dtype[Any]) -> Floats:
    """Return float32 values rounded to the 16-bit format of `dtype`, as float32."""
    bits = _to_bits(values, dtype)
    return upcast_bf16(bits) if dtype == np.uint16 else bits.view(np.float16).astype(np.float32)


def _join_heads(values: Floats, dtype: np.dtype[Any]) -> Any:
    """Return float32 (B, heads, T, D) as a 16-bit matrix (R, heads * D)."""
    sequences, heads, length, size = values.shape
    return _to_bits(values.transpose(0, 2, 1, 3).reshape(sequences * length, heads * size), dtype)


def _masked_scores(q: Floats, k: Floats, starts: DocumentStarts) -> Floats:
    scores: Floats = q @ k.swapaxes(2, 3) * np.float32(1 / math.sqrt(q.shape[3]))
    scores[..., np.triu(np.ones(scores.shape[2:], bool), 1)] = -np.inf
    if starts.size:
        sequences, _, length, _ = q.shape
        earlier = np.arange(length) < starts.reshape(sequences, length, 1)  # key before the document of the query
        scores[np.broadcast_to(earlier[:, None], scores.shape)] = -np.inf
    return scores


def _dropped(p: Floats, acts: AttentionActivations, factor: np.float32) -> Floats:
    """Return probabilities, or their gradients, (B, H, T, T) with elements dropped and the others times `factor`."""
    found = np.ascontiguousarray(p)
    for b, h in np.ndindex(p.shape[:2]):
        length = p.shape[2]
        numbers = ElementNumbers(b * length * length, length, 1)
        dropout_tile(found[b, h], head_dropout(acts.dropout, h), numbers, length, length, factor)
    return found


def forward_numpy(
    acts: AttentionActivations, sequences: int, heads: HeadCounts, part: Part, scratch: AttentionScratch
) -> None:
    """See `kernels.bits16.attention.layer.attention_heads_forward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    q, k, v = _split_qkv(qkv, sequences, heads)
    scores = _masked_scores(q, k, acts.starts)
    largest = scores.max(axis=3, keepdims=True)
    p = np.exp(scores - largest)
    total = p.sum(axis=3, keepdims=True)
    lse[...] = (largest + np.log(total))[..., 0]
    p = _dropped(_rounded(p, qkv.dtype), acts, np.float32(1.0))
    out[...] = _join_heads(p @ v * (kept_factor(acts.dropout) / total), qkv.dtype)


def backward_numpy(
    d_out: Bits16,
    acts: AttentionActivations,
    sequences: int,
    heads: HeadCounts,
    part: Part,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    """See `kernels.bits16.attention.layer.attention_heads_backward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    q, k, v = _split_qkv(qkv, sequences, heads)
    d_o, o = _split_heads(d_out, sequences, heads.query), _split_heads(out, sequences, heads.query)
    scale = np.float32(1 / math.sqrt(q.shape[3]))
    p = np.exp(_masked_scores(q, k, acts.starts) - lse[..., None])
    kept = kept_factor(acts.dropout)
    d_p = _dropped(d_o @ v.swapaxes(2, 3), acts, kept)
    ds = _rounded(p * (d_p - (d_o * o).sum(axis=3, keepdims=True)), qkv.dtype)
    p = _dropped(_rounded(p, qkv.dtype), acts, kept)
    d_k, d_v = _group_sums(ds.swapaxes(2, 3) @ q, heads) * scale, _group_sums(p.swapaxes(2, 3) @ d_o, heads)
    d_qkv[...] = np.concatenate([_join_heads(part, qkv.dtype) for part in (ds @ k * scale, d_k, d_v)], axis=1)
