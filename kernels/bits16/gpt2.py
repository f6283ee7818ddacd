"""GPT-2 in 16 bits for one micro-batch: `kernels.float32.gpt2` with other number formats.

Packed weights, activations and the gradients that GEMMs read are bfloat16 or float16; the residual stream and its
gradient, statistics, softmax, loss and the gradients of the weights are float32. One source serves both formats: the
integer dtype of an array selects its format (`kernels.simd.scalar`, `kernels.bits16.linear`). Implements
`kernels.common.protocol.ModelKernels`.

A LayerNorm also adds the bias of the linear layer whose result is added to the residual stream next, since it has just
loaded the row. So the backward pass of a LayerNorm also computes the gradient of the bias that was added before it.
"""

from threadloom.kernels.bits16.attention import attention_backward, attention_forward
from threadloom.kernels.bits16.gelu import gelu_backward
from threadloom.kernels.bits16.head import ProjectionScratch, projection_backward, projection_loss
from threadloom.kernels.bits16.layernorm import (
    LayerNormGradients,
    NormalizedRows,
    layernorm_apply,
    layernorm_apply_transposed,
    layernorm_backward,
    layernorm_forward,
)
from threadloom.kernels.bits16.linear import (
    linear_backward_bias,
    linear_backward_weight,
    linear_forward,
    transpose_backward_weight,
)
from threadloom.kernels.bits16.lora import (
    LoraBackward,
    adapted_backward_input,
    adapted_forward,
    adapted_gelu_forward,
    lora_backward_weight,
    lora_input,
)
from threadloom.kernels.bits16.residual import (
    ResidualLayer,
    bias_beside_norm,
    branch_gradient,
    last_bias_beside_norm,
    residual_forward,
)
from threadloom.kernels.bits16.tensors import (
    Activations16,
    AdaptedWeight,
    PackedPair,
    PackedWeights,
    Scratch16,
    SecondProduct,
    Weights16,
)
from threadloom.kernels.common import (
    AccumulationTicket,
    Affine,
    AttentionActivations,
    Gpt2Constants,
    HeadCounts,
    LoraAdapter,
    LoraSite,
    ResidualSite,
    Weights,
    attention_dropout,
    last_head_part,
    mark_part_done,
    mlp_part,
    residual_dropout,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.matmul import transpose_bf16
from threadloom.kernels.simd import Bits16


@jit_inline_body
def _qkv_layer(p: PackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.qkv[n], p.qkv_t[n]),
        PackedPair(p.qkv_a[n], p.qkv_a_t[n]),
        PackedPair(p.qkv_b[n], p.qkv_b_t[n]),
    )


@jit_inline_body
def _attn_proj_layer(p: PackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.attn_proj[n], p.attn_proj_t[n]),
        PackedPair(p.attn_proj_a[n], p.attn_proj_a_t[n]),
        PackedPair(p.attn_proj_b[n], p.attn_proj_b_t[n]),
    )


@jit_inline_body
def _fc_layer(p: PackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.fc[n], p.fc_t[n]),
        PackedPair(p.fc_a[n], p.fc_a_t[n]),
        PackedPair(p.fc_b[n], p.fc_b_t[n]),
    )


@jit_inline_body
def _mlp_proj_layer(p: PackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.mlp_proj[n], p.mlp_proj_t[n]),
        PackedPair(p.mlp_proj_a[n], p.mlp_proj_a_t[n]),
        PackedPair(p.mlp_proj_b[n], p.mlp_proj_b_t[n]),
    )


@jit_kernel
def blocks_forward(weights: Weights16, acts: Activations16, sequences: int, constants: Gpt2Constants) -> None:
    """Run all blocks on ``acts.x``, the embeddings, and fill every activation; R is a multiple of `sequences`.

    Activations of one layer are enough for `head_loss`.
    """
    w, p, a, lora = weights.master, weights.packed, acts, constants.lora
    for n in range(w.ln1_weight.shape[0]):
        k = n % a.qkv.shape[0]  # an evaluation keeps one layer
        of_attention = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
        of_mlp = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.MLP)
        ln1, ln2 = Affine(w.ln1_weight[n], w.ln1_bias[n]), Affine(w.ln2_weight[n], w.ln2_bias[n])
        bias = bias_beside_norm(w.attn_proj_bias[n], of_attention)
        layernorm_forward(a.x, ln1, bias, NormalizedRows(a.normed1[k], a.rstd1[k]), a.h)
        given = lora_input(lora, a.dropout_key, n, LoraSite.QKV, a.dropped)
        adapted_forward(a.h, _qkv_layer(p, n), given, a.qkv_xa[k], w.qkv_bias[n], a.qkv[k], a.thread)
        dropout = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
        attention = AttentionActivations(a.qkv[k], a.attn[k], a.attn_lse[k], a.starts, dropout)
        attention_forward(attention, sequences, HeadCounts(constants.heads, constants.heads), a.thread.attention)
        given = lora_input(lora, a.dropout_key, n, LoraSite.ATTN_PROJ, a.dropped)
        attn_proj = ResidualLayer(_attn_proj_layer(p, n), w.attn_proj_bias[n], given, a.attn_proj_xa[k], of_attention)
        residual_forward(a.attn[k], attn_proj, a.h, a.x, a.thread)
        bias = bias_beside_norm(w.mlp_proj_bias[n], of_mlp)
        layernorm_forward(a.x, ln2, bias, NormalizedRows(a.normed2[k], a.rstd2[k]), a.h)
        fc = a.fc[min(n, a.fc.shape[0] - 1)]
        given = lora_input(lora, a.dropout_key, n, LoraSite.UP, a.dropped)
        adapted_gelu_forward(a.h, _fc_layer(p, n), given, a.fc_xa[k], w.fc_bias[n], fc, a.gelu, a.thread)
        given = lora_input(lora, a.dropout_key, n, LoraSite.DOWN, a.dropped)
        mlp_proj = ResidualLayer(_mlp_proj_layer(p, n), w.mlp_proj_bias[n], given, a.mlp_proj_xa[k], of_mlp)
        residual_forward(a.gelu, mlp_proj, a.h, a.x, a.thread)


@jit_inline_body
def _unless_frozen(gradient: Floats, unused: Floats) -> Floats:
    """Return `gradient`, or `unused` (C,) for a frozen tensor.

    The sums over a row in a LayerNorm's backward pass and its gradients are one loop: without the gradients, the order
    of the sums would be another.
    """
    return gradient if gradient.size else unused


@jit_inline_body
def norm_gradients(weight: Floats, bias: Floats, added: Floats, scratch: Scratch16) -> LayerNormGradients:
    """Return the gradients of a LayerNorm, with scratch in place of those of frozen tensors."""
    unused = scratch.unused
    return LayerNormGradients(
        _unless_frozen(weight, unused[0]), _unless_frozen(bias, unused[1]), _unless_frozen(added, unused[2])
    )


@jit_kernel
def _normed_linear_backward(
    d_out: Bits16,
    kept: NormalizedRows,
    norm: Affine,
    layer: AdaptedWeight,
    d_norm: LayerNormGradients,
    d_weight: Floats,
    lora: LoraBackward,
    scratch: Scratch16,
    accumulate: bool,
) -> None:
    """Backpropagate through a linear layer whose input was a LayerNorm's output, and through the LayerNorm.

    `d_out` is the gradient of the linear layer's output. The gradient of the LayerNorm's input is added to
    ``scratch.dx``; those of the parameters, but for the linear layer's bias, are written, or added when `accumulate`.
    """
    s = scratch
    if d_weight.size:
        x_t = s.transposed[: kept.n.shape[1]]
        transpose_bf16(kept.n, x_t)
        layernorm_apply_transposed(x_t, norm)
        linear_backward_weight(x_t, d_out, d_weight, accumulate, s.thread.upcast)
    adapted_backward_input(d_out, layer, lora, s.dh, s.thread)
    if lora.grads.a.size:
        layernorm_apply(kept.n, norm, s.h)
    lora_backward_weight(s.h, d_out, lora, accumulate, s.thread)
    layernorm_backward(s.dh, kept, norm.weight, s.dx, s.dx16, d_norm, accumulate)


@jit_inline_body
def _before_gelu(weights: Weights16, acts: Activations16, scratch: Scratch16, n: int) -> Bits16:
    """Return the input of the GELU of block `n`, recomputed if the forward pass kept only that of the last block."""
    w, a, layers = weights.master, acts, weights.master.ln1_weight.shape[0]
    fc = a.fc[min(n, a.fc.shape[0] - 1)]
    if a.fc.shape[0] < layers and n < layers - 1:
        layernorm_apply(a.normed2[n], Affine(w.ln2_weight[n], w.ln2_bias[n]), scratch.h)
        second = SecondProduct(a.fc_xa[n], weights.packed.fc_b[n])
        linear_forward(scratch.h, weights.packed.fc[n], second, w.fc_bias[n], fc, scratch.thread.upcast)
    return fc


@jit_inline_body
def _mlp_backward(
    weights: Weights16,
    acts: Activations16,
    grads: Weights,
    scratch: Scratch16,
    n: int,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of the output of block `n` to that between its two halves."""
    w, p, a, g, s = weights.master, weights.packed, acts, grads, scratch
    accumulate, part = ticket.accumulate, mlp_part(s.logits.shape[1], w.ln1_weight.shape[0], n)
    lora = constants.lora
    wait_for_predecessor(ticket, part)
    dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.MLP)
    branch_gradient(s.dx, dropout, s.dx16, g.mlp_proj_bias[n], accumulate)
    given = lora_input(lora, a.dropout_key, n, LoraSite.DOWN, s.dropped)
    d_adapter = LoraAdapter(g.mlp_proj_a[n], g.mlp_proj_b[n])
    of_proj = LoraBackward(d_adapter, a.mlp_proj_xa[n], s.d_xa, s.xa_t, s.d_dropped, lora.down, given)
    adapted_backward_input(s.dx16, _mlp_proj_layer(p, n), of_proj, s.d_fc, s.thread)
    gelu_backward(_before_gelu(weights, acts, scratch, n), s.d_fc, s.gelu, g.fc_bias[n], accumulate)
    transpose_backward_weight(s.gelu, s.dx16, g.mlp_proj_weight[n], accumulate, s.transposed, s.thread.upcast)
    lora_backward_weight(s.gelu, s.dx16, of_proj, accumulate, s.thread)
    norm, kept = Affine(w.ln2_weight[n], w.ln2_bias[n]), NormalizedRows(a.normed2[n], a.rstd2[n])
    d_norm = norm_gradients(g.ln2_weight[n], g.ln2_bias[n], bias_beside_norm(g.attn_proj_bias[n], dropout), s)
    given = lora_input(lora, a.dropout_key, n, LoraSite.UP, s.dropped)
    d_adapter = LoraAdapter(g.fc_a[n], g.fc_b[n])
    of_fc = LoraBackward(d_adapter, a.fc_xa[n], s.d_xa, s.xa_t, s.d_dropped, lora.up, given)
    _normed_linear_backward(s.d_fc, kept, norm, _fc_layer(p, n), d_norm, g.fc_weight[n], of_fc, s, accumulate)
    mark_part_done(ticket, part)


@jit_inline_body
def _attention_backward(
    weights: Weights16,
    acts: Activations16,
    grads: Weights,
    scratch: Scratch16,
    n: int,
    sequences: int,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient between the halves of block `n` to that of the block's input."""
    w, p, a, g, s = weights.master, weights.packed, acts, grads, scratch
    accumulate, part = ticket.accumulate, mlp_part(s.logits.shape[1], w.ln1_weight.shape[0], n) + 1
    wait_for_predecessor(ticket, part)
    dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
    branch_gradient(s.dx, dropout, s.dx16, g.attn_proj_bias[n], accumulate)
    transpose_backward_weight(a.attn[n], s.dx16, g.attn_proj_weight[n], accumulate, s.transposed, s.thread.upcast)
    lora = constants.lora
    given = lora_input(lora, a.dropout_key, n, LoraSite.ATTN_PROJ, s.dropped)
    d_adapter = LoraAdapter(g.attn_proj_a[n], g.attn_proj_b[n])
    of_proj = LoraBackward(d_adapter, a.attn_proj_xa[n], s.d_xa, s.xa_t, s.d_dropped, lora.attn_proj, given)
    adapted_backward_input(s.dx16, _attn_proj_layer(p, n), of_proj, s.d_attn, s.thread)
    lora_backward_weight(a.attn[n], s.dx16, of_proj, accumulate, s.thread)
    of_heads = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, of_heads)
    attention_backward(
        s.d_attn, attention, sequences, HeadCounts(constants.heads, constants.heads), s.d_qkv, s.thread.attention
    )
    linear_backward_bias(s.d_qkv, g.qkv_bias[n], accumulate)
    norm, kept = Affine(w.ln1_weight[n], w.ln1_bias[n]), NormalizedRows(a.normed1[n], a.rstd1[n])
    below = g.mlp_proj_bias[n - 1] if n > 0 else s.unused[2]
    d_norm = norm_gradients(g.ln1_weight[n], g.ln1_bias[n], bias_beside_norm(below, dropout), s)
    given = lora_input(lora, a.dropout_key, n, LoraSite.QKV, s.dropped)
    d_adapter = LoraAdapter(g.qkv_a[n], g.qkv_b[n])
    of_qkv = LoraBackward(d_adapter, a.qkv_xa[n], s.d_xa, s.xa_t, s.d_dropped, lora.qkv, given)
    _normed_linear_backward(s.d_qkv, kept, norm, _qkv_layer(p, n), d_norm, g.qkv_weight[n], of_qkv, s, accumulate)
    mark_part_done(ticket, part)


@jit_kernel
def blocks_backward(
    weights: Weights16,
    acts: Activations16,
    grads: Weights,
    scratch: Scratch16,
    sequences: int,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` to the gradient of the embeddings; write or add the gradients of the blocks' tensors.

    Without dropout, the gradient of the last block's MLP bias is computed by `head_backward`, which runs first; that of
    any other block's MLP bias by the next block, in that block's part of the `ticket`.
    """
    for n in range(weights.master.ln1_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, constants, ticket)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, ticket)


@jit_kernel
def head_loss(
    weights: Weights16, acts: Activations16, targets: TokenIds, constants: Gpt2Constants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient.

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`; `logits` (rows of a chunk, V) is scratch. The first block's
    ``normed1`` and ``rstd1`` are overwritten: `blocks_backward` must not follow.
    """
    a, w = acts, weights.master
    kept = NormalizedRows(a.normed1[0], a.rstd1[0])
    layernorm_forward(a.x, Affine(w.lnf_weight, w.lnf_bias), a.rstd1[0, :0], kept, a.h)
    return projection_loss(a.h, weights.packed.wte_t, targets, logits, a.thread.upcast)


@jit_kernel
def head_backward(
    weights: Weights16,
    acts: Activations16,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: Scratch16,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x`` to ``scratch.dx``.

    As `kernels.float32.gpt2.head_backward`. The gradient of the last block's MLP bias is computed here, too.
    """
    w, p, s, accumulate = weights.master, weights.packed, scratch, ticket.accumulate
    kept = NormalizedRows(s.normed, s.rstd)
    layernorm_forward(acts.x, Affine(w.lnf_weight, w.lnf_bias), s.rstd[:0], kept, s.h)
    s.dx.fill(0.0)  # `layernorm_backward` adds to it
    projection = ProjectionScratch(s.logits, s.d_logits, s.d_logits_t, s.thread.upcast)
    packed, terms = PackedPair(p.wte, p.wte_t), constants.loss
    loss = projection_backward(s.h, packed, targets, scale, terms, grads.wte, s.dh, projection, ticket)
    last_bias = last_bias_beside_norm(grads.mlp_proj_bias, constants.dropout, acts.dropout_key)
    d_norm = norm_gradients(grads.lnf_weight, grads.lnf_bias, last_bias, s)
    layernorm_backward(s.dh, kept, w.lnf_weight, s.dx, s.dx16, d_norm, accumulate)
    mark_part_done(ticket, last_head_part(s.logits.shape[1]))
    return loss
