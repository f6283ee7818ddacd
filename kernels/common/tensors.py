"""The named tensors that kernels read and write, grouped so that one argument stands for many arrays.

Shape legend, used in every kernel's docstring:

====== =========================================================
B      sequences in the micro-batch
T      tokens of a sequence (at most the model's context)
R      rows, B * T; row ``b * T + t`` is token t of sequence b
C      channels (the model's width)
H, D   heads, and the size of one head (C = H * D)
F      width of the hidden MLP layer (4 * C)
L      layers (transformer blocks)
V      vocabulary
====== =========================================================

All arrays are C-contiguous float32 unless a comment says otherwise; matrices are stored (inputs, outputs), as in
GPT-2's own files, so that a linear layer is ``y = x @ weight + bias``. The layers of one kind are stacked in the first
axis. Numba compiles against these tuples: a change of a field is a change of every compiled signature.
"""

from typing import NamedTuple

from threadloom.kernels.compiling import Floats


class Weights(NamedTuple):
    """The parameters of a model, or anything shaped like them: gradients, AdamW's moments.

    Matrices come first and vectors last: weight decay applies to matrices only, so in a flat arena it covers a prefix.
    """

    wte: Floats  # (V, C) token embedding, tied with the output projection
    wpe: Floats  # (context, C) position embedding
    qkv_weight: Floats  # (L, C, 3C) query, key and value side by side
    attn_proj_weight: Floats  # (L, C, C)
    fc_weight: Floats  # (L, C, F)
    mlp_proj_weight: Floats  # (L, F, C)
    ln1_weight: Floats  # (L, C)
    ln1_bias: Floats  # (L, C)
    qkv_bias: Floats  # (L, 3C)
    attn_proj_bias: Floats  # (L, C)
    ln2_weight: Floats  # (L, C)
    ln2_bias: Floats  # (L, C)
    fc_bias: Floats  # (L, F)
    mlp_proj_bias: Floats  # (L, C)
    lnf_weight: Floats  # (C,)
    lnf_bias: Floats  # (C,)


class Activations(NamedTuple):
    """What forward keeps of one micro-batch for backward, and forward's own scratch (the last three)."""

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
    h: Floats  # (R, C) scratch: a LayerNorm's output
    gelu: Floats  # (R, F) scratch: the GELU's output
    scores: Floats  # (TILE, context) scratch: attention scores of one tile of queries


class Scratch(NamedTuple):
    """What backward needs beside the activations; it belongs to the lane, never to two threads at once."""

    dx: Floats  # (R, C) gradient of the residual stream
    dh: Floats  # (R, C) gradient of a LayerNorm's output
    d_attn: Floats  # (R, C) gradient of the attention's output
    d_qkv: Floats  # (R, 3C)
    d_fc: Floats  # (R, F)
    gelu: Floats  # (R, F) the GELU's output, made again
    h: Floats  # (R, C) a LayerNorm's output, made again
    scores: Floats  # (TILE, context)
    d_scores: Floats  # (TILE, context)
    logits: Floats  # (rows of one chunk, V) logits, then their gradient
    lnf_mean: Floats  # (R,)
    lnf_rstd: Floats  # (R,)


ATTENTION_TILE = 64
"""Queries of one head that are scored at a time: ``TILE`` in the shapes above."""
