"""Named tensors of training in 16 bits: packed weights, activations, and scratch.

`kernels.common.tensors` has the legend of shapes. P' is P, in bfloat16 rounded up to whole panels: the further columns
are zeros, as those of a packed matrix. `Bits16` arrays hold the bits of bfloat16 (uint16) or float16 (int16) numbers.
Sums, statistics and the residual stream are float32.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16.attention import AttentionScratch, attention_example
from threadloom.kernels.common import DocumentStarts, LlamaWeights, Weights
from threadloom.kernels.compiling import Floats
from threadloom.kernels.simd import Bits16

PackedWeight = NDArray[Any]
"""Compute copy of a matrix that GEMMs read: packed bfloat16 (uint32 words), or float16 in the master's layout (int16).
"""


class PackedPair(NamedTuple):
    """Compute copies of one matrix (I, O) for both directions."""

    packed: PackedWeight  # right operand of ``x @ W``
    packed_t: PackedWeight  # right operand of ``dy @ W.T``; no elements if no GEMM reads it, or it is made when needed


class SecondProduct(NamedTuple):
    """Product that a GEMM adds to its float32 sums before it rounds them; of 0 columns of `x`: none."""

    x: Bits16  # (R, K)
    weight: PackedWeight  # compute copy of (K, O)


class AdaptedWeight(NamedTuple):
    """Compute copies of the matrices of one linear layer (I, O) and its adapter (`kernels.common.LoraAdapter`)."""

    weight: PackedPair  # (I, O)
    a: PackedPair  # (P, I)
    b: PackedPair  # (P, O)


class PackedWeights(NamedTuple):
    """Compute copies of all matrices of one version of the weights. Vectors are read from the float32 master.

    A field holds a weight W (I, O) as the right operand of ``x @ W``, the field that ends in ``_t`` as that of
    ``dy @ W.T``. For bfloat16 both are packed (`kernels.matmul.pack`); for float16 both fields are one array. To save
    memory, the packed transposes of the layers' bfloat16 matrices may be arrays (L, 0, pairs, 32) without elements: the
    backward pass then makes them, a part at a time, from the packed matrices.
    """

    wte: PackedWeight  # d_logits @ wte: packed (V, C)
    wte_t: PackedWeight  # h @ wte.T: packed (C, V)
    qkv: PackedWeight  # (L, packed (C, 3C))
    qkv_t: PackedWeight
    attn_proj: PackedWeight  # (L, packed (C, C))
    attn_proj_t: PackedWeight
    fc: PackedWeight  # (L, packed (C, F))
    fc_t: PackedWeight
    mlp_proj: PackedWeight  # (L, packed (F, C))
    mlp_proj_t: PackedWeight
    qkv_a: PackedWeight  # (L, packed (P, C)) low-rank adapters; without, packed (0, 0)
    qkv_a_t: PackedWeight
    qkv_b: PackedWeight  # (L, packed (P, 3C))
    qkv_b_t: PackedWeight
    attn_proj_a: PackedWeight  # (L, packed (P, C))
    attn_proj_a_t: PackedWeight
    attn_proj_b: PackedWeight  # (L, packed (P, C))
    attn_proj_b_t: PackedWeight
    fc_a: PackedWeight  # (L, packed (P, C))
    fc_a_t: PackedWeight
    fc_b: PackedWeight  # (L, packed (P, F))
    fc_b_t: PackedWeight
    mlp_proj_a: PackedWeight  # (L, packed (P, F))
    mlp_proj_a_t: PackedWeight
    mlp_proj_b: PackedWeight  # (L, packed (P, C))
    mlp_proj_b_t: PackedWeight


class Weights16(NamedTuple):
    """One version of the weights as the kernels of this room read it."""

    master: Weights  # float32
    packed: PackedWeights  # the matrices of `master`, rounded


class Fp16UpcastScratch(NamedTuple):
    """Operands of float16's GEMMs, upcast to float32. All arrays have length 0 for bfloat16, which needs none."""

    a: Floats  # flat: sizes from `kernels.matmul.fp16`
    b: Floats
    sums: Floats


class ThreadScratch(NamedTuple):
    """Scratch that only one thread uses at a time. Contents are undefined before and after a call."""

    attention: AttentionScratch
    upcast: Fp16UpcastScratch
    packed_t: PackedWeight  # flat: panels of a packed transpose that is not held; no elements if all are
    lora_sums: Floats  # (R * P'), for the largest P': the product of an adapter before it is scaled and rounded


def thread_example() -> ThreadScratch:
    """Return scratch without elements, of the types that it has in both formats."""
    flat = np.zeros(0, np.float32)
    return ThreadScratch(attention_example(), Fp16UpcastScratch(flat, flat, flat), np.zeros(0, np.uint32), flat)


class Activations16(NamedTuple):
    """Arrays that the forward pass keeps of one micro-batch for the backward pass; the last three are scratch.

    The residual stream exists once and is not kept: the backward pass needs only each LayerNorm's normalised rows, from
    which the LayerNorm's output follows.
    """

    x: Floats  # (R, C) residual stream: first the embeddings, at the end the output of the last block
    normed1: Bits16  # (L, R, C) rows of the first LayerNorm before weight and bias
    rstd1: Floats  # (L, R)
    qkv: Bits16  # (L, R, 3C)
    attn: Bits16  # (L, R, C)
    attn_lse: Floats  # (L, B, H, T)
    normed2: Bits16  # (L, R, C)
    rstd2: Floats  # (L, R)
    fc: Bits16  # (L, R, F) before the GELU; (1, R, F) if backward recomputes all but the last layer's
    qkv_xa: Bits16  # (L, R, P') inputs of the adapters' second matrices, ``scale * x @ a.T`` (`kernels.bits16.lora`)
    attn_proj_xa: Bits16
    fc_xa: Bits16
    mlp_proj_xa: Bits16
    dropout_key: NDArray[np.uint64]  # (1,) of the adapters' dropout; 0: none
    starts: DocumentStarts  # (R,) row within its sequence at which the document of each row begins; (0,): no borders
    dropped: Bits16  # (R * I,) scratch: an adapter's input with dropped elements, for the largest I; (0,) without
    h: Bits16  # (R, C) scratch: a LayerNorm's output
    gelu: Bits16  # (R, F) scratch: the GELU's output
    thread: ThreadScratch


class Scratch16(NamedTuple):
    """Scratch of the backward pass. It belongs to a lane: only one thread uses it at a time."""

    dx: Floats  # (R, C) gradient of the residual stream
    dx16: Bits16  # (R, C) the same, rounded: the operand of a block's GEMMs
    dh: Floats  # (R, C) gradient of a LayerNorm's output
    d_attn: Bits16  # (R, C)
    d_qkv: Bits16  # (R, 3C)
    d_fc: Bits16  # (R, F)
    gelu: Bits16  # (R, F) the GELU's output, recomputed
    transposed: Bits16  # (F, R) a transposed operand
    logits: Floats  # (rows of one chunk, V)
    d_logits: Bits16  # (rows of one chunk, V)
    d_logits_t: Bits16  # (columns of one slice, rows of one chunk)
    h: Bits16  # (R, C) the last LayerNorm's output; then a layer's, recomputed
    normed: Bits16  # (R, C) the same before weight and bias
    rstd: Floats  # (R,)
    d_xa: Bits16  # (R * P') gradient of the input of an adapter's second matrix, for the largest P'
    xa_t: Bits16  # (P' * R) the transposed gradient, or the transposed input
    dropped: Bits16  # (R * I,) an adapter's input with dropped elements, for the largest I; (0,) without dropout
    d_dropped: Floats  # (R * I,) the gradient of it
    unused: Floats  # (3, C) receives gradients that nothing reads: of frozen tensors, or of a bias that no layer has
    thread: ThreadScratch


class LlamaPackedWeights(NamedTuple):
    """Compute copies of all matrices of one version of a Llama's weights, as `PackedWeights`.

    In a model with tied embeddings `head` and `wte` are one array.
    """

    wte: PackedWeight  # read by the embedding: packed (V, C)
    head: PackedWeight  # d_logits @ head: packed (V, C)
    head_t: PackedWeight  # h @ head.T: packed (C, V)
    qkv: PackedWeight  # (L, packed (C, (H + 2K) D))
    qkv_t: PackedWeight
    attn_proj: PackedWeight  # (L, packed (H D, C))
    attn_proj_t: PackedWeight
    gate_up: PackedWeight  # (L, packed (C, 2F))
    gate_up_t: PackedWeight
    down: PackedWeight  # (L, packed (F, C))
    down_t: PackedWeight
    qkv_a: PackedWeight  # (L, packed (P, C)) low-rank adapters; without, packed (0, 0)
    qkv_a_t: PackedWeight
    qkv_b: PackedWeight  # (L, packed (P, (H + 2K) D))
    qkv_b_t: PackedWeight
    attn_proj_a: PackedWeight  # (L, packed (P, H D))
    attn_proj_a_t: PackedWeight
    attn_proj_b: PackedWeight  # (L, packed (P, C))
    attn_proj_b_t: PackedWeight
    gate_up_a: PackedWeight  # (L, packed (P, C))
    gate_up_a_t: PackedWeight
    gate_up_b: PackedWeight  # (L, packed (P, 2F))
    gate_up_b_t: PackedWeight
    down_a: PackedWeight  # (L, packed (P, F))
    down_a_t: PackedWeight
    down_b: PackedWeight  # (L, packed (P, C))
    down_b_t: PackedWeight


class LlamaWeights16(NamedTuple):
    """One version of a Llama's weights as the kernels of this room read it."""

    master: LlamaWeights  # float32
    packed: LlamaPackedWeights  # the matrices of `master`, rounded


class LlamaActivations16(NamedTuple):
    """Arrays that the forward pass of a Llama keeps of one micro-batch; the last three are scratch."""

    x: Floats  # (R, C) residual stream: first the embeddings, at the end the output of the last block
    normed1: Bits16  # (L, R, C) rows of the first RMS norm before its weight
    rstd1: Floats  # (L, R)
    qkv: Bits16  # (L, R, (H + 2K) D) as attention reads it: normalised and with rotary positions
    qk_raw: Bits16  # (L, R, (H + K) D) queries and keys before their norm; 0 columns without one
    attn: Bits16  # (L, R, H D)
    attn_lse: Floats  # (L, B, H, T)
    normed2: Bits16  # (L, R, C)
    rstd2: Floats  # (L, R)
    gate_up: Bits16  # (L, R, 2F); (1, R, 2F) if backward recomputes all but the last layer's
    qkv_xa: Bits16  # (L, R, P') inputs of the adapters' second matrices, ``scale * x @ a.T`` (`kernels.bits16.lora`)
    attn_proj_xa: Bits16
    gate_up_xa: Bits16
    down_xa: Bits16
    dropout_key: NDArray[np.uint64]  # (1,) of the adapters' dropout; 0: none
    starts: DocumentStarts  # (R,) row within its sequence at which the document of each row begins; (0,): no borders
    dropped: Bits16  # (R * I,) scratch: an adapter's input with dropped elements, for the largest I; (0,) without
    h: Bits16  # (R, C) scratch: an RMS norm's output
    gated: Bits16  # (R, F) scratch: SiLU(gate) * up
    thread: ThreadScratch


class LlamaScratch16(NamedTuple):
    """Scratch of the backward pass of a Llama. It belongs to a lane: only one thread uses it at a time."""

    dx: Floats  # (R, C) gradient of the residual stream
    dx16: Bits16  # (R, C) the same, rounded
    dh: Floats  # (R, C) gradient of an RMS norm's output
    d_attn: Bits16  # (R, H D)
    d_qkv: Bits16  # (R, (H + 2K) D)
    d_gated: Bits16  # (R, F)
    d_gate_up: Bits16  # (R, 2F)
    gated: Bits16  # (R, F) recomputed
    transposed: Bits16  # (max(C, F, H D), R) a transposed operand
    logits: Floats  # (rows of one chunk, V)
    d_logits: Bits16  # (rows of one chunk, V)
    d_logits_t: Bits16  # (columns of one slice, rows of one chunk)
    h: Bits16  # (R, C) the last RMS norm's output; then a layer's, recomputed
    normed: Bits16  # (R, C) the same before its weight
    rstd: Floats  # (R,)
    d_xa: Bits16  # (R * P') gradient of the input of an adapter's second matrix, for the largest P'
    xa_t: Bits16  # (P' * R) the transposed gradient, or the transposed input
    dropped: Bits16  # (R * I,) an adapter's input with dropped elements, for the largest I; (0,) without dropout
    d_dropped: Floats  # (R * I,) the gradient of it
    thread: ThreadScratch
