"""Causal self-attention on 16-bit arrays by NumPy, for runs without the JIT compiler (``NUMBA_DISABLE_JIT=1``)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16.attention.scratch import AttentionScratch
from threadloom.kernels.common import AttentionActivations
from threadloom.kernels.compiling import Floats
from threadloom.kernels.simd import Bits16, round_to_bf16, upcast_bf16


def _split_heads(matrix: Any, sequences: int, heads: int) -> NDArray[np.float32]:
    """Return a 16-bit matrix (R, C) as float32 (B, H, T, D)."""
    upcast = upcast_bf16(matrix) if matrix.dtype == np.uint16 else matrix.view(np.float16).astype(np.float32)
    return upcast.reshape(sequences, matrix.shape[0] // sequences, heads, -1).transpose(0, 2, 1, 3)


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
    """Return float32 (B, H, T, D) as a 16-bit matrix (R, C)."""
    sequences, heads, length, size = values.shape
    return _to_bits(values.transpose(0, 2, 1, 3).reshape(sequences * length, heads * size), dtype)


def _masked_scores(q: Floats, k: Floats) -> Floats:
    scores: Floats = q @ k.swapaxes(2, 3) * np.float32(1 / math.sqrt(q.shape[3]))
    scores[..., np.triu(np.ones(scores.shape[2:], bool), 1)] = -np.inf
    return scores


def forward_numpy(acts: AttentionActivations, sequences: int, heads: int, scratch: AttentionScratch) -> None:
    """See `kernels.bits16.attention.layer.attention_forward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    q, k, v = (_split_heads(part, sequences, heads) for part in np.split(qkv, 3, axis=1))
    scores = _masked_scores(q, k)
    largest = scores.max(axis=3, keepdims=True)
    p = np.exp(scores - largest)
    total = p.sum(axis=3, keepdims=True)
    lse[...] = (largest + np.log(total))[..., 0]
    out[...] = _join_heads(_rounded(p, qkv.dtype) @ v / total, qkv.dtype)


def backward_numpy(
    d_out: Bits16, acts: AttentionActivations, sequences: int, heads: int, d_qkv: Bits16, scratch: AttentionScratch
) -> None:
    """See `kernels.bits16.attention.layer.attention_backward`."""
    qkv, out, lse = acts.qkv, acts.out, acts.lse
    q, k, v = (_split_heads(part, sequences, heads) for part in np.split(qkv, 3, axis=1))
    d_o, o = _split_heads(d_out, sequences, heads), _split_heads(out, sequences, heads)
    scale = np.float32(1 / math.sqrt(q.shape[3]))
    p = np.exp(_masked_scores(q, k) - lse[..., None])
    ds = _rounded(p * (d_o @ v.swapaxes(2, 3) - (d_o * o).sum(axis=3, keepdims=True)), qkv.dtype)
    p = _rounded(p, qkv.dtype)
    parts = (ds @ k * scale, ds.swapaxes(2, 3) @ q * scale, p.swapaxes(2, 3) @ d_o)
    d_qkv[...] = np.concatenate([_join_heads(part, qkv.dtype) for part in parts], axis=1)
