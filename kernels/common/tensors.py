"""Named tuples of tensors that kernels read and write, so that one argument groups many arrays.

Shape legend, used in every kernel's docstring:

====== =========================================================
B      sequences in the micro-batch
T      tokens of a sequence (at most the model's context)
R      rows, B * T; row ``b * T + t`` is token t of sequence b
C      channels (the model's width)
H, D   query heads, and the size of one head (GPT-2: C = H * D)
K      heads of keys and values (GPT-2: K = H); query head h uses head h // (H / K)
F      width of the hidden MLP layer (GPT-2: 4 * C)
M      dimensions of a head that rotary positions turn (at most D)
L      layers (transformer blocks)
P      ranks of the adapters of a linear layer together
V      vocabulary
====== =========================================================

All arrays are C-contiguous float32 unless a comment says otherwise; matrices are stored (inputs, outputs), as in
GPT-2's own files, so that a linear layer is ``y = x @ weight + bias``. The layers of one kind are stacked along the
first axis. Numba compiles for these tuples: a change of a field changes every compiled signature.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common.documents import NO_BORDERS, DocumentStarts
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
    qkv_a: Floats  # (L, P, C) low-rank adapters (see `LoraAdapter`); (L, 0, 0) without
    qkv_b: Floats  # (L, P, 3C)
    attn_proj_a: Floats  # (L, P, C)
    attn_proj_b: Floats  # (L, P, C)
    fc_a: Floats  # (L, P, C)
    fc_b: Floats  # (L, P, F)
    mlp_proj_a: Floats  # (L, P, F)
    mlp_proj_b: Floats  # (L, P, C)
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


class LlamaWeights(NamedTuple):
    """Parameters of a model of the Llama family, or arrays of the same shapes: gradients, AdamW's moments.

    Matrices come first, as in `Weights`. A tensor that a model does not have is an array without elements: a bias or a
    norm of queries and keys has 0 columns. In a model with tied embeddings `head` and `wte` are one array.
    """

    wte: Floats  # (V, C) token embedding
    head: Floats  # (V, C) output projection
    qkv_weight: Floats  # (L, C, (H + 2K) D) columns of all queries, all keys, all values
    attn_proj_weight: Floats  # (L, H D, C)
    gate_up_weight: Floats  # (L, C, 2F) columns of the gate, then those that it multiplies
    down_weight: Floats  # (L, F, C)
    qkv_a: Floats  # (L, P, C) low-rank adapters (see `LoraAdapter`); (L, 0, 0) without
    qkv_b: Floats  # (L, P, (H + 2K) D)
    attn_proj_a: Floats  # (L, P, H D)
    attn_proj_b: Floats  # (L, P, C)
    gate_up_a: Floats  # (L, P, C)
    gate_up_b: Floats  # (L, P, 2F)
    down_a: Floats  # (L, P, F)
    down_b: Floats  # (L, P, C)
    norm1_weight: Floats  # (L, C)
    norm2_weight: Floats  # (L, C)
    normf_weight: Floats  # (C,)
    qkv_bias: Floats  # (L, (H + 2K) D)
    attn_proj_bias: Floats  # (L, C)
    gate_up_bias: Floats  # (L, 2F)
    down_bias: Floats  # (L, C)
    q_norm_weight: Floats  # (L, D)
    k_norm_weight: Floats  # (L, D)


class LoraAdapter(NamedTuple):
    """A low-rank adapter of a linear layer, or its gradients: ``y = x @ W + bias + scale * (x @ a.T) @ b``.

    LoRA (Hu et al., 2021). Where several matrices lie side by side in W, as those of queries, keys and values, each has
    an adapter: their rows are stacked in `a`, and `b` has blocks, zeros elsewhere. P is the sum of the ranks. A layer
    without adapter has arrays without elements.
    """

    a: Floats  # (P, I)
    b: Floats  # (P, O)


class LoraSite(IntEnum):
    """The matrices of a layer that can have adapters."""

    QKV = 0
    ATTN_PROJ = 1
    UP = 2  # the first layer of the MLP
    DOWN = 3  # the last layer of the MLP


class LoraConstants(NamedTuple):
    """Numbers of the low-rank adapters of a model that are not trained.

    An array (adapters, 2) holds the first column, and the one after the last, of the matrix of each adapter of a layer;
    (0, 2) without adapters.
    """

    scale: float  # alpha / rank, or alpha / sqrt(rank)
    dropout: float  # probability with which an element of an adapter's input is dropped
    qkv: NDArray[np.int64]
    attn_proj: NDArray[np.int64]
    up: NDArray[np.int64]  # of the first layer of the MLP
    down: NDArray[np.int64]  # of the last layer of the MLP


NO_LORA = LoraConstants(0.0, 0.0, *(np.zeros((0, 2), np.int64) for _ in range(4)))
"""The constants of a model without adapters."""


class LossTerms(NamedTuple):
    """Terms of the training loss beside the cross-entropy (`kernels.common.cross_entropy`)."""

    label_smoothing: float  # share of the target's probability that all tokens together get
    z_loss: float  # coefficient of the square of the logarithm of the softmax's denominator
    sums: NDArray[np.float64]  # (2,) the sums of both terms are added to it; not read without terms


NO_TERMS = LossTerms(0.0, 0.0, np.zeros(0))
"""The loss is the cross-entropy alone."""


class Dropout(NamedTuple):
    """Dropout of the elements of one array of a micro-batch (`kernels.common.dropout`)."""

    probability: float  # with which an element is set to 0; the others are divided by 1 - probability
    key: NDArray[np.uint64]  # (1,) of the micro-batch; 0: no dropout, as in an evaluation
    matrix: int  # number of the array in the model


NO_DROPOUT = Dropout(0.0, np.zeros(1, np.uint64), 0)
"""Nothing is dropped."""


class DropoutRates(NamedTuple):
    """Probabilities of dropout in the blocks of a model."""

    residual: float = 0.0  # of the outputs of attention and MLP, before they are added to the residual stream
    attention: float = 0.0  # of the probabilities of attention


NO_RATES = DropoutRates()
"""The blocks drop nothing."""


class HeadCounts(NamedTuple):
    """Heads of grouped-query attention (Ainslie et al., 2023): `query` is a multiple of `key_value`."""

    query: int  # H
    key_value: int  # K


class Gpt2Constants(NamedTuple):
    """Numbers of a GPT-2 that are not trained, and of its loss."""

    heads: int  # H; keys and values have as many
    lora: LoraConstants
    loss: LossTerms = NO_TERMS
    dropout: DropoutRates = NO_RATES


class LlamaConstants(NamedTuple):
    """Numbers of a model of the Llama family that are not trained, and of its loss."""

    heads: HeadCounts
    epsilon: float  # added to the mean of squares of an RMS norm
    cos: Floats  # (context, M / 2) cosines of the angles of rotary positions
    sin: Floats  # (context, M / 2)
    rotary: NDArray[Any]  # (L,) bool: layers with rotary positions
    lora: LoraConstants
    loss: LossTerms = NO_TERMS
    dropout: DropoutRates = NO_RATES


class AttentionActivations(NamedTuple):
    """Input and results of attention's forward pass, which its backward pass reads.

    `qkv` and `out` have the number format of the activations: float32, or the bits of a 16-bit format.
    """

    qkv: NDArray[Any]  # (R, (H + 2K) D) q, k and v side by side, each of them the heads side by side
    out: NDArray[Any]  # (R, H D) the heads' outputs
    lse: Floats  # (B, H, T) log-sum-exp of each row of scores
    starts: DocumentStarts = NO_BORDERS  # (R,) or (0,) as in `kernels.common.documents`
    dropout: Dropout = NO_DROPOUT  # of the probabilities of the first query head (`kernels.common.dropout`)


ATTENTION_TILE = 64
"""Queries of one head whose scores exist at a time: ``TILE`` in shapes."""
