"""The Llama family in 16 bits for one micro-batch: `kernels.float32.llama` with other number formats.

Packed weights, activations and the gradients that GEMMs read are bfloat16 or float16; the residual stream and its
gradient, statistics, softmax, loss and the gradients of the weights are float32. One source serves both formats, as in
`kernels.bits16.gpt2`. Implements `kernels.common.protocol.ModelKernels`.

An RMS norm also adds the bias of the linear layer whose result is added to the residual stream next, since it has just
loaded the row. So the backward pass of an RMS norm also computes the gradient of the bias that was added before it.
"""

from threadloom.kernels.bits16.attention import attention_backward, attention_forward
from threadloom.kernels.bits16.head import ProjectionScratch, projection_backward, projection_loss
from threadloom.kernels.bits16.layernorm import NormalizedRows
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
from threadloom.kernels.bits16.rmsnorm import (
    RmsNormGradients,
    rmsnorm_apply,
    rmsnorm_apply_transposed,
    rmsnorm_backward,
    rmsnorm_forward,
)
from threadloom.kernels.bits16.tensors import (
    AdaptedWeight,
    LlamaActivations16,
    LlamaPackedWeights,
    LlamaScratch16,
    LlamaWeights16,
    PackedPair,
    SecondProduct,
)
from threadloom.kernels.common import (
    AccumulationTicket,
    AttentionActivations,
    LlamaConstants,
    LlamaWeights,
    LoraAdapter,
    LoraSite,
    ResidualSite,
    attention_dropout,
    last_head_part,
    mark_part_done,
    mlp_part,
    prepare_heads_backward,
    prepare_heads_forward,
    residual_dropout,
    swiglu_backward,
    swiglu_forward,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.matmul import transpose_bf16
from threadloom.kernels.simd import Bits16


@jit_inline_body
def _qkv_layer(p: LlamaPackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.qkv[n], p.qkv_t[n]),
        PackedPair(p.qkv_a[n], p.qkv_a_t[n]),
        PackedPair(p.qkv_b[n], p.qkv_b_t[n]),
    )


@jit_inline_body
def _attn_proj_layer(p: LlamaPackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.attn_proj[n], p.attn_proj_t[n]),
        PackedPair(p.attn_proj_a[n], p.attn_proj_a_t[n]),
        PackedPair(p.attn_proj_b[n], p.attn_proj_b_t[n]),
    )


@jit_inline_body
def _gate_up_layer(p: LlamaPackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.gate_up[n], p.gate_up_t[n]),
        PackedPair(p.gate_up_a[n], p.gate_up_a_t[n]),
        PackedPair(p.gate_up_b[n], p.gate_up_b_t[n]),
    )


@jit_inline_body
def _down_layer(p: LlamaPackedWeights, n: int) -> AdaptedWeight:
    return AdaptedWeight(
        PackedPair(p.down[n], p.down_t[n]),
        PackedPair(p.down_a[n], p.down_a_t[n]),
        PackedPair(p.down_b[n], p.down_b_t[n]),
    )


@jit_kernel
def blocks_forward(
    weights: LlamaWeights16, acts: LlamaActivations16, sequences: int, constants: LlamaConstants
) -> None:
    """Run all blocks on ``acts.x``, the embeddings, and fill every activation; R is a multiple of `sequences`.

    Activations of one layer are enough for `head_loss`.
    """
    w, p, a, c = weights.master, weights.packed, acts, constants
    for n in range(w.norm1_weight.shape[0]):
        k = n % a.qkv.shape[0]  # an evaluation keeps one layer
        of_attention = residual_dropout(c.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
        of_mlp = residual_dropout(c.dropout, a.dropout_key, n, ResidualSite.MLP)
        kept1, kept2 = NormalizedRows(a.normed1[k], a.rstd1[k]), NormalizedRows(a.normed2[k], a.rstd2[k])
        bias = bias_beside_norm(w.attn_proj_bias[n], of_attention)
        rmsnorm_forward(a.x, w.norm1_weight[n], c.epsilon, bias, kept1, a.h)
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.QKV, a.dropped)
        adapted_forward(a.h, _qkv_layer(p, n), given, a.qkv_xa[k], w.qkv_bias[n], a.qkv[k], a.thread)
        prepare_heads_forward(a.qkv[k], a.qk_raw[k], w, c, n, sequences, a.starts)
        dropout = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
        attention = AttentionActivations(a.qkv[k], a.attn[k], a.attn_lse[k], a.starts, dropout)
        attention_forward(attention, sequences, c.heads, a.thread.attention)
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.ATTN_PROJ, a.dropped)
        attn_proj = ResidualLayer(_attn_proj_layer(p, n), w.attn_proj_bias[n], given, a.attn_proj_xa[k], of_attention)
        residual_forward(a.attn[k], attn_proj, a.h, a.x, a.thread)
        bias = bias_beside_norm(w.down_bias[n], of_mlp)
        rmsnorm_forward(a.x, w.norm2_weight[n], c.epsilon, bias, kept2, a.h)
        gate_up = a.gate_up[min(n, a.gate_up.shape[0] - 1)]
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.UP, a.dropped)
        adapted_forward(a.h, _gate_up_layer(p, n), given, a.gate_up_xa[k], w.gate_up_bias[n], gate_up, a.thread)
        swiglu_forward(gate_up, a.gated)
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.DOWN, a.dropped)
        down = ResidualLayer(_down_layer(p, n), w.down_bias[n], given, a.down_xa[k], of_mlp)
        residual_forward(a.gated, down, a.h, a.x, a.thread)


@jit_kernel
def _normed_linear_backward(
    d_out: Bits16,
    kept: NormalizedRows,
    norm: Floats,
    layer: AdaptedWeight,
    d_norm: RmsNormGradients,
    d_weight: Floats,
    lora: LoraBackward,
    scratch: LlamaScratch16,
    accumulate: bool,
) -> None:
    """Backpropagate through a linear layer whose input was an RMS norm's output, and through the norm.

    `d_out` is the gradient of the linear layer's output. The gradient of the norm's input is added to ``scratch.dx``;
    those of the parameters, but for the linear layer's bias, are written, or added when `accumulate`.
    """
    s = scratch
    if d_weight.size:
        x_t = s.transposed[: kept.n.shape[1]]
        transpose_bf16(kept.n, x_t)
        rmsnorm_apply_transposed(x_t, norm)
        linear_backward_weight(x_t, d_out, d_weight, accumulate, s.thread.upcast)
    adapted_backward_input(d_out, layer, lora, s.dh, s.thread)
    if lora.grads.a.size:
        rmsnorm_apply(kept.n, norm, s.h)
    lora_backward_weight(s.h, d_out, lora, accumulate, s.thread)
    rmsnorm_backward(s.dh, kept, norm, s.dx, s.dx16, d_norm, accumulate)


@jit_inline_body
def _gate_up(weights: LlamaWeights16, acts: LlamaActivations16, scratch: LlamaScratch16, n: int) -> Bits16:
    """Return the gate and up of block `n`, recomputed if the forward pass kept only those of the last block."""
    w, a, layers = weights.master, acts, weights.master.norm1_weight.shape[0]
    gate_up = a.gate_up[min(n, a.gate_up.shape[0] - 1)]
    if a.gate_up.shape[0] < layers and n < layers - 1:
        rmsnorm_apply(a.normed2[n], w.norm2_weight[n], scratch.h)
        second = SecondProduct(a.gate_up_xa[n], weights.packed.gate_up_b[n])
        packed, upcast = weights.packed.gate_up[n], scratch.thread.upcast
        linear_forward(scratch.h, packed, second, w.gate_up_bias[n], gate_up, upcast)
    return gate_up


@jit_inline_body
def _mlp_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    n: int,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of the output of block `n` to that between its two halves."""
    w, p, a, g, s = weights.master, weights.packed, acts, grads, scratch
    accumulate, part = ticket.accumulate, mlp_part(s.logits.shape[1], w.norm1_weight.shape[0], n)
    lora = constants.lora
    wait_for_predecessor(ticket, part)
    dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.MLP)
    branch_gradient(s.dx, dropout, s.dx16, g.down_bias[n], accumulate)
    given = lora_input(lora, a.dropout_key, n, LoraSite.DOWN, s.dropped)
    d_adapter = LoraAdapter(g.down_a[n], g.down_b[n])
    of_down = LoraBackward(d_adapter, a.down_xa[n], s.d_xa, s.xa_t, s.d_dropped, lora.down, given)
    adapted_backward_input(s.dx16, _down_layer(p, n), of_down, s.d_gated, s.thread)
    swiglu_backward(_gate_up(weights, acts, scratch, n), s.d_gated, s.d_gate_up, s.gated)
    transpose_backward_weight(s.gated, s.dx16, g.down_weight[n], accumulate, s.transposed, s.thread.upcast)
    lora_backward_weight(s.gated, s.dx16, of_down, accumulate, s.thread)
    linear_backward_bias(s.d_gate_up, g.gate_up_bias[n], accumulate)
    kept = NormalizedRows(a.normed2[n], a.rstd2[n])
    d_norm = RmsNormGradients(g.norm2_weight[n], bias_beside_norm(g.attn_proj_bias[n], dropout))
    given = lora_input(lora, a.dropout_key, n, LoraSite.UP, s.dropped)
    d_adapter = LoraAdapter(g.gate_up_a[n], g.gate_up_b[n])
    of_gate_up = LoraBackward(d_adapter, a.gate_up_xa[n], s.d_xa, s.xa_t, s.d_dropped, lora.up, given)
    _normed_linear_backward(
        s.d_gate_up, kept, w.norm2_weight[n], _gate_up_layer(p, n), d_norm, g.gate_up_weight[n], of_gate_up, s,
        accumulate,
    )  # fmt: skip
    mark_part_done(ticket, part)


@jit_inline_body
def _attention_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    n: int,
    sequences: int,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient between the halves of block `n` to that of the block's input."""
    w, p, a, g, s, c = weights.master, weights.packed, acts, grads, scratch, constants
    accumulate, part = ticket.accumulate, mlp_part(s.logits.shape[1], w.norm1_weight.shape[0], n) + 1
    wait_for_predecessor(ticket, part)
    dropout = residual_dropout(c.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
    branch_gradient(s.dx, dropout, s.dx16, g.attn_proj_bias[n], accumulate)
    transpose_backward_weight(a.attn[n], s.dx16, g.attn_proj_weight[n], accumulate, s.transposed, s.thread.upcast)
    given = lora_input(c.lora, a.dropout_key, n, LoraSite.ATTN_PROJ, s.dropped)
    d_adapter = LoraAdapter(g.attn_proj_a[n], g.attn_proj_b[n])
    of_proj = LoraBackward(d_adapter, a.attn_proj_xa[n], s.d_xa, s.xa_t, s.d_dropped, c.lora.attn_proj, given)
    adapted_backward_input(s.dx16, _attn_proj_layer(p, n), of_proj, s.d_attn, s.thread)
    lora_backward_weight(a.attn[n], s.dx16, of_proj, accumulate, s.thread)
    of_heads = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, of_heads)
    attention_backward(s.d_attn, attention, sequences, c.heads, s.d_qkv, s.thread.attention)
    prepare_heads_backward(s.d_qkv, a.qk_raw[n], w, g, c, n, sequences, a.starts, accumulate)
    linear_backward_bias(s.d_qkv, g.qkv_bias[n], accumulate)
    kept = NormalizedRows(a.normed1[n], a.rstd1[n])
    below = g.down_bias[n - 1] if n > 0 else g.down_bias[n, :0]
    d_norm = RmsNormGradients(g.norm1_weight[n], bias_beside_norm(below, dropout))
    given = lora_input(c.lora, a.dropout_key, n, LoraSite.QKV, s.dropped)
    d_adapter = LoraAdapter(g.qkv_a[n], g.qkv_b[n])
    of_qkv = LoraBackward(d_adapter, a.qkv_xa[n], s.d_xa, s.xa_t, s.d_dropped, c.lora.qkv, given)
    _normed_linear_backward(
        s.d_qkv, kept, w.norm1_weight[n], _qkv_layer(p, n), d_norm, g.qkv_weight[n], of_qkv, s, accumulate
    )
    mark_part_done(ticket, part)


@jit_kernel
def blocks_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    sequences: int,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` to the gradient of the embeddings; write or add the gradients of the blocks' tensors.

    Without dropout, the gradient of the last block's MLP bias is computed by `head_backward`, which runs first; that of
    any other block's MLP bias by the next block, in that block's part of the `ticket`.
    """
    for n in range(weights.master.norm1_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, constants, ticket)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, ticket)


@jit_kernel
def head_loss(
    weights: LlamaWeights16, acts: LlamaActivations16, targets: TokenIds, constants: LlamaConstants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient.

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`; `logits` (rows of a chunk, V) is scratch. The first block's
    ``normed1`` and ``rstd1`` are overwritten: `blocks_backward` must not follow.
    """
    a = acts
    kept = NormalizedRows(a.normed1[0], a.rstd1[0])
    rmsnorm_forward(a.x, weights.master.normf_weight, constants.epsilon, a.rstd1[0, :0], kept, a.h)
    return projection_loss(a.h, weights.packed.head_t, targets, logits, a.thread.upcast)


@jit_kernel
def head_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    targets: TokenIds,
    scale: float,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x`` to ``scratch.dx``.

    As `kernels.float32.llama.head_backward`. The gradient of the last block's MLP bias is computed here, too.
    """
    w, p, s = weights.master, weights.packed, scratch
    kept = NormalizedRows(s.normed, s.rstd)
    rmsnorm_forward(acts.x, w.normf_weight, constants.epsilon, s.rstd[:0], kept, s.h)
    s.dx.fill(0.0)  # `rmsnorm_backward` adds to it
    head = PackedPair(p.head, p.head_t)
    projection = ProjectionScratch(s.logits, s.d_logits, s.d_logits_t, s.thread.upcast)
    loss = projection_backward(s.h, head, targets, scale, constants.loss, grads.head, s.dh, projection, ticket)
    last_bias = last_bias_beside_norm(grads.down_bias, constants.dropout, acts.dropout_key)
    d_norm = RmsNormGradients(grads.normf_weight, last_bias)
    rmsnorm_backward(s.dh, kept, w.normf_weight, s.dx, s.dx16, d_norm, ticket.accumulate)
    mark_part_done(ticket, last_head_part(s.logits.shape[1]))
    return loss
