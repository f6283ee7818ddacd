"""The Llama family (Touvron et al., 2023) in float32 for one micro-batch; each function releases the GIL throughout.

The model is blocks of ``x += attention(rmsnorm(x))`` and ``x += mlp(rmsnorm(x))``, a last RMS norm, and an output
projection of its own or the token embedding. Attention has grouped heads and rotary positions, the MLP is gated by a
SiLU. Biases, norms of queries and keys, and rotary positions in every layer are optional: a tensor that a model does
not have has no elements. The backward pass recomputes the outputs of the RMS norms and of the gate. Implements
`kernels.common.protocol.ModelKernels`.
"""

from typing import NamedTuple

from threadloom.kernels.common import (
    AccumulationTicket,
    AttentionActivations,
    LlamaConstants,
    LlamaWeights,
    LoraAdapter,
    LoraSite,
    ResidualSite,
    attention_dropout,
    dropout_residual,
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
from threadloom.kernels.float32.attention import attention_backward, attention_forward
from threadloom.kernels.float32.head import projection_backward, projection_loss
from threadloom.kernels.float32.linear import (
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_residual_forward,
)
from threadloom.kernels.float32.lora import (
    LoraBackward,
    lora_backward_input,
    lora_backward_weight,
    lora_forward,
    lora_input,
)
from threadloom.kernels.float32.residual import branch_gradient, residual_branch
from threadloom.kernels.float32.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward, rmsnorm_row
from threadloom.kernels.float32.tensors import LlamaActivations, LlamaScratch


@jit_kernel
def blocks_forward(weights: LlamaWeights, acts: LlamaActivations, sequences: int, constants: LlamaConstants) -> None:
    """Run all blocks on ``acts.x[0]``, the embeddings, and fill every activation; R is a multiple of `sequences`.

    Activations of one layer, with the two rows of ``acts.x`` in turn, are enough for `head_loss`.
    """
    w, a, c = weights, acts, constants
    for n in range(w.qkv_weight.shape[0]):
        k = n % a.qkv.shape[0]  # an evaluation keeps one layer
        x, x_mid, x_next = a.x[n % a.x.shape[0]], a.x_mid[k], a.x[(n + 1) % a.x.shape[0]]
        rmsnorm_forward(x, w.norm1_weight[n], c.epsilon, a.h, a.rstd1[k])
        linear_forward(a.h, w.qkv_weight[n], w.qkv_bias[n], a.qkv[k])
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.QKV, a.dropped)
        lora_forward(a.h, LoraAdapter(w.qkv_a[n], w.qkv_b[n]), given, a.qkv_xa[k], a.qkv[k])
        prepare_heads_forward(a.qkv[k], a.qk_raw[k], w, c, n, sequences, a.starts)
        dropout = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
        attention = AttentionActivations(a.qkv[k], a.attn[k], a.attn_lse[k], a.starts, dropout)
        attention_forward(attention, sequences, c.heads, a.scores)
        dropout = residual_dropout(c.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
        branch = residual_branch(dropout, x, a.h, x_mid)
        linear_residual_forward(a.attn[k], w.attn_proj_weight[n], w.attn_proj_bias[n], branch.residual, branch.out)
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.ATTN_PROJ, a.dropped)
        lora_forward(a.attn[k], LoraAdapter(w.attn_proj_a[n], w.attn_proj_b[n]), given, a.attn_proj_xa[k], branch.out)
        dropout_residual(branch.out, dropout, x, x_mid)
        rmsnorm_forward(x_mid, w.norm2_weight[n], c.epsilon, a.h, a.rstd2[k])
        linear_forward(a.h, w.gate_up_weight[n], w.gate_up_bias[n], a.gate_up[k])
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.UP, a.dropped)
        lora_forward(a.h, LoraAdapter(w.gate_up_a[n], w.gate_up_b[n]), given, a.gate_up_xa[k], a.gate_up[k])
        swiglu_forward(a.gate_up[k], a.gated)
        dropout = residual_dropout(c.dropout, a.dropout_key, n, ResidualSite.MLP)
        branch = residual_branch(dropout, x_mid, a.h, x_next)
        linear_residual_forward(a.gated, w.down_weight[n], w.down_bias[n], branch.residual, branch.out)
        given = lora_input(c.lora, a.dropout_key, n, LoraSite.DOWN, a.dropped)
        lora_forward(a.gated, LoraAdapter(w.down_a[n], w.down_b[n]), given, a.down_xa[k], branch.out)
        dropout_residual(branch.out, dropout, x_mid, x_next)


class _NormedLinear(NamedTuple):
    """Parameters of an RMS norm and of the linear layer that reads its output, or their gradients."""

    norm: Floats  # (C,)
    weight: Floats  # (C, O)
    bias: Floats  # (O,) or (0,)


@jit_inline_body
def _qkv_layer(w: LlamaWeights, n: int) -> _NormedLinear:
    """Return the first norm of block `n` with the projection to queries, keys and values."""
    return _NormedLinear(w.norm1_weight[n], w.qkv_weight[n], w.qkv_bias[n])


@jit_inline_body
def _gate_up_layer(w: LlamaWeights, n: int) -> _NormedLinear:
    """Return the second norm of block `n` with the first layer of the MLP."""
    return _NormedLinear(w.norm2_weight[n], w.gate_up_weight[n], w.gate_up_bias[n])


@jit_kernel
def _normed_linear_backward(
    d_out: Floats,
    x: Floats,
    rstd: Floats,
    layer: _NormedLinear,
    grads: _NormedLinear,
    lora: LoraBackward,
    scratch: LlamaScratch,
    accumulate: bool,
) -> None:
    """Add the gradient of `x`, the input of the norm, to ``scratch.dx``, given that of the linear layer's output.

    The gradients of the parameters are written, or added when `accumulate`.
    """
    s = scratch
    linear_backward_input(d_out, layer.weight, s.dh)
    lora_backward_input(d_out, lora, s.dh)
    if grads.weight.size or lora.grads.a.size:
        rmsnorm_apply(x, layer.norm, rstd, s.h)
    linear_backward_weight(s.h, d_out, grads.weight, accumulate)
    linear_backward_bias(d_out, grads.bias, accumulate)
    lora_backward_weight(s.h, d_out, lora, accumulate)
    rmsnorm_backward(s.dh, x, layer.norm, rstd, s.dx, grads.norm, accumulate)


@jit_kernel
def _mlp_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    n: int,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of ``x[n + 1]`` to that of ``x_mid[n]``."""
    w, a, g, s, lora, accumulate = weights, acts, grads, scratch, constants.lora, ticket.accumulate
    part = mlp_part(w.head.shape[0], w.qkv_weight.shape[0], n)
    wait_for_predecessor(ticket, part)
    of_down = LoraBackward(
        LoraAdapter(w.down_a[n], w.down_b[n]), LoraAdapter(g.down_a[n], g.down_b[n]),
        a.down_xa[n], s.d_xa, lora.down, lora_input(lora, a.dropout_key, n, LoraSite.DOWN, s.dropped),
    )  # fmt: skip
    dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.MLP)
    d_out = branch_gradient(s.dx, dropout, s.dh)
    linear_backward_input(d_out, w.down_weight[n], s.d_gated)
    lora_backward_input(d_out, of_down, s.d_gated)
    swiglu_backward(a.gate_up[n], s.d_gated, s.d_gate_up, s.gated)
    linear_backward_weight(s.gated, d_out, g.down_weight[n], accumulate)
    linear_backward_bias(d_out, g.down_bias[n], accumulate)
    lora_backward_weight(s.gated, d_out, of_down, accumulate)
    layer, d_layer = _gate_up_layer(w, n), _gate_up_layer(g, n)
    of_gate_up = LoraBackward(
        LoraAdapter(w.gate_up_a[n], w.gate_up_b[n]), LoraAdapter(g.gate_up_a[n], g.gate_up_b[n]),
        a.gate_up_xa[n], s.d_xa, lora.up, lora_input(lora, a.dropout_key, n, LoraSite.UP, s.dropped),
    )  # fmt: skip
    _normed_linear_backward(s.d_gate_up, a.x_mid[n], a.rstd2[n], layer, d_layer, of_gate_up, s, accumulate)
    mark_part_done(ticket, part)


@jit_kernel
def _attention_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    n: int,
    sequences: int,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of ``x_mid[n]`` to that of ``x[n]``."""
    w, a, g, s, c, accumulate = weights, acts, grads, scratch, constants, ticket.accumulate
    part = mlp_part(w.head.shape[0], w.qkv_weight.shape[0], n) + 1
    wait_for_predecessor(ticket, part)
    of_proj = LoraBackward(
        LoraAdapter(w.attn_proj_a[n], w.attn_proj_b[n]), LoraAdapter(g.attn_proj_a[n], g.attn_proj_b[n]),
        a.attn_proj_xa[n], s.d_xa, c.lora.attn_proj,
        lora_input(c.lora, a.dropout_key, n, LoraSite.ATTN_PROJ, s.dropped),
    )  # fmt: skip
    dropout = residual_dropout(c.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
    d_out = branch_gradient(s.dx, dropout, s.dh)
    linear_backward_weight(a.attn[n], d_out, g.attn_proj_weight[n], accumulate)
    linear_backward_bias(d_out, g.attn_proj_bias[n], accumulate)
    linear_backward_input(d_out, w.attn_proj_weight[n], s.d_attn)
    lora_backward_input(d_out, of_proj, s.d_attn)
    lora_backward_weight(a.attn[n], d_out, of_proj, accumulate)
    of_heads = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, of_heads)
    attention_backward(s.d_attn, attention, sequences, c.heads, s.d_qkv, s.scores)
    prepare_heads_backward(s.d_qkv, a.qk_raw[n], w, g, c, n, sequences, a.starts, accumulate)
    of_qkv = LoraBackward(
        LoraAdapter(w.qkv_a[n], w.qkv_b[n]), LoraAdapter(g.qkv_a[n], g.qkv_b[n]),
        a.qkv_xa[n], s.d_xa, c.lora.qkv, lora_input(c.lora, a.dropout_key, n, LoraSite.QKV, s.dropped),
    )  # fmt: skip
    _normed_linear_backward(s.d_qkv, a.x[n], a.rstd1[n], _qkv_layer(w, n), _qkv_layer(g, n), of_qkv, s, accumulate)
    mark_part_done(ticket, part)


@jit_kernel
def blocks_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    sequences: int,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of x[L] to that of x[0]; write or add the gradients of the blocks' tensors.

    Gradients need not be initialised unless ``ticket.accumulate``. The parts of the `ticket` are those that follow the
    head's.
    """
    for n in range(weights.qkv_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, constants, ticket)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, ticket)


@jit_kernel
def head_loss(
    weights: LlamaWeights, acts: LlamaActivations, targets: TokenIds, constants: LlamaConstants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient.

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`; `logits` (rows of a chunk, V) is scratch.
    """
    x_final = acts.x[weights.qkv_weight.shape[0] % acts.x.shape[0]]
    for r in range(x_final.shape[0]):
        rmsnorm_row(x_final[r], weights.normf_weight, constants.epsilon, acts.h[r])
    return projection_loss(acts.h, weights.head, targets, logits)


@jit_kernel
def head_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    targets: TokenIds,
    scale: float,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    constants: LlamaConstants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x[L]`` to ``scratch.dx``.

    Every gradient is multiplied by `scale` (1 / tokens of the batch gives the gradient of the mean). Those of `head`
    and `normf_weight` are written, or added if ``ticket.accumulate``. The logits exist for the rows of one chunk
    (``scratch.logits.shape[0]``) at a time. The rows of `head` are the first parts of the `ticket`.
    """
    w, s, x_final = weights, scratch, acts.x[acts.x.shape[0] - 1]
    rmsnorm_forward(x_final, w.normf_weight, constants.epsilon, s.h, s.normf_rstd)
    s.dx.fill(0.0)  # `rmsnorm_backward` adds to it
    loss = projection_backward(s.h, w.head, targets, scale, constants.loss, grads.head, s.dh, s.logits, ticket)
    rmsnorm_backward(s.dh, x_final, w.normf_weight, s.normf_rstd, s.dx, grads.normf_weight, ticket.accumulate)
    mark_part_done(ticket, last_head_part(w.head.shape[0]))
    return loss
