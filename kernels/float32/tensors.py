"""Named tensors of training in float32. `kernels.common.tensors` has the legend of shapes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common import DocumentStarts
from threadloom.kernels.compiling import Floats


class Activations(NamedTuple):
    """Arrays that the forward pass keeps of one micro-batch for the backward pass; the last three are scratch."""

    x: Floats  # (L + 1, R, C) residual stream: x[0] the embeddings, x[l] enters block l, x[L] leaves the last
    ln1_mean: Floats  # (L, R)
    ln1_rstd: Floats  # (L, R) reciprocal standard deviation
    qkv: Floats  # (L, R, 3C)
    attn: Floats  # (L, R, C) heads' outputs side by side, before the projection
    attn_lse: Floats  # (L, B, H, T) log of the sum of exponentials of each row of scaled scores
    x_mid: Floats  # (L, R, C) residual stream between attention and MLP
    ln2_mean: Floats  # (L, R)
    ln2_rstd: Floats  # (L, R)
    fc: Floats  # (L, R, F) before the GELU
    qkv_xa: Floats  # (L, R, P) inputs of the adapters' second matrices, ``scale * x @ a.T``
    attn_proj_xa: Floats
    fc_xa: Floats
    mlp_proj_xa: Floats
    dropout_key: NDArray[np.uint64]  # (1,) of the adapters' dropout; 0: none
    starts: DocumentStarts  # (R,) row within its sequence at which the document of each row begins; (0,): no borders
    dropped: Floats  # (R * I,) scratch: an adapter's input with dropped elements, for the largest I; (0,) without
    h: Floats  # (R, C) scratch: a LayerNorm's output
    gelu: Floats  # (R, F) scratch: the GELU's output
    scores: Floats  # (TILE, context) scratch: attention scores of one tile of queries


class Scratch(NamedTuple):
    """Scratch of the backward pass. It belongs to a lane: only one thread uses it at a time."""

    dx: Floats  # (R, C) gradient of the residual stream
    dh: Floats  # (R, C) gradient of a LayerNorm's output
    d_attn: Floats  # (R, C) gradient of the attention's output
    d_qkv: Floats  # (R, 3C)
    d_fc: Floats  # (R, F)
    gelu: Floats  # (R, F) the GELU's output, recomputed
    h: Floats  # (R, C) a LayerNorm's output, recomputed
    scores: Floats  # (2, TILE, context) attention scores of one tile, and their gradient
    logits: Floats  # (rows of one chunk, V) logits, then their gradient
    lnf_mean: Floats  # (R,)
    lnf_rstd: Floats  # (R,)
    d_xa: Floats  # (R * P) gradient of the input of an adapter's `b`, for the largest P
    dropped: Floats  # (R * I,) an adapter's input with dropped elements, or the gradient of it


class LlamaActivations(NamedTuple):
    """Arrays that the forward pass of a Llama keeps of one micro-batch; the last three are scratch."""

    x: Floats  # (L + 1, R, C) residual stream: x[0] the embeddings, x[l] enters block l, x[L] leaves the last
    rstd1: Floats  # (L, R) reciprocal root of the mean of squares
    qkv: Floats  # (L, R, (H + 2K) D) as attention reads it: normalised and with rotary positions
    qk_raw: Floats  # (L, R, (H + K) D) queries and keys before their norm; 0 columns without one
    attn: Floats  # (L, R, H D)
    attn_lse: Floats  # (L, B, H, T)
    x_mid: Floats  # (L, R, C) residual stream between attention and MLP
    rstd2: Floats  # (L, R)
    gate_up: Floats  # (L, R, 2F)
    qkv_xa: Floats  # (L, R, P) inputs of the adapters' second matrices, ``scale * x @ a.T``
    attn_proj_xa: Floats
    gate_up_xa: Floats
    down_xa: Floats
    dropout_key: NDArray[np.uint64]  # (1,)
    starts: DocumentStarts  # (R,) row within its sequence at which the document of each row begins; (0,): no borders
    dropped: Floats  # (R * I,) scratch
    h: Floats  # (R, C) scratch: an RMS norm's output
    gated: Floats  # (R, F) scratch: SiLU(gate) * up
    scores: Floats  # (TILE, context) scratch


class LlamaScratch(NamedTuple):
    """Scratch of the backward pass of a Llama. It belongs to a lane: only one thread uses it at a time."""

    dx: Floats  # (R, C) gradient of the residual stream
    dh: Floats  # (R, C) gradient of an RMS norm's output
    d_attn: Floats  # (R, H D)
    d_qkv: Floats  # (R, (H + 2K) D)
    d_gated: Floats  # (R, F)
    d_gate_up: Floats  # (R, 2F)
    gated: Floats  # (R, F) recomputed
    h: Floats  # (R, C) an RMS norm's output, recomputed
    scores: Floats  # (2, TILE, context)
    logits: Floats  # (rows of one chunk, V) logits, then their gradient
    normf_rstd: Floats  # (R,)
    d_xa: Floats  # (R * P) gradient of the input of an adapter's `b`, for the largest P
    dropped: Floats  # (R * I,) an adapter's input with dropped elements, or the gradient of it
