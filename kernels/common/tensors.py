"""Named tuples of tensors that kernels read and write, so that one argument groups many arrays.

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
GPT-2's own files, so that a linear layer is ``y = x @ weight + bias``. The layers of one kind are stacked along the
first axis. Numba compiles for these tuples: a change of a field changes every compiled signature.
"""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from threadloom.kernels.compiling import Floats


class Weights(NamedTuple):
    """Parameters of a model, or arrays of the same shapes: gradients, AdamW's moments.

    Matrices come first and vectors last: weight decay applies to matrices only, so in a flat arena it covers a prefix.
    """

    wte: Floats  # (V, C) token embedding, tied with the output projection
    wpe: Floats  # (context, C) position embedding
    qkv_weight: Floats  # (L, C, 3C) columns of query, key and value
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


class AttentionActivations(NamedTuple):
    """Input and results of attention's forward pass, which its backward pass reads.

    `qkv` and `out` have the number format of the activations: float32, or the bits of a 16-bit format.
    """

    qkv: NDArray[Any]  # (R, 3C) q, k and v side by side, each of them the heads side by side
    out: NDArray[Any]  # (R, C) the heads' outputs
    lse: Floats  # (B, H, T) log-sum-exp of each row of scores


ATTENTION_TILE = 64
"""Queries of one head whose scores exist at a time: ``TILE`` in shapes."""
