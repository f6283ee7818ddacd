"""GPT-2 (Radford et al., 2019) in float32 for one micro-batch; each function releases the GIL for its whole duration.

The model is blocks of ``x += attention(layernorm(x))`` and ``x += mlp(layernorm(x))``, a last LayerNorm, and the token
embedding as the output projection. The forward pass keeps the arrays of `Activations`; the backward pass recomputes the
outputs of LayerNorm and GELU, which costs less than keeping them. Implements `kernels.common.protocol.ModelKernels`.
"""

from typing import NamedTuple

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
    dropout_residual,
    last_head_part,
    mark_part_done,
    mlp_part,
    residual_dropout,
    wait_for_predecessor,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.float32.attention import attention_backward, attention_forward
from threadloom.kernels.float32.gelu import gelu_backward, gelu_forward
from threadloom.kernels.float32.head import projection_backward, projection_loss
from threadloom.kernels.float32.layernorm import (
    RowStatistics,
    layernorm_apply,
    layernorm_backward,
    layernorm_forward,
    layernorm_row,
)
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
from threadloom.kernels.float32.tensors import Activations, Scratch


@jit_kernel
def blocks_forward(weights: Weights, acts: Activations, sequences: int, constants: Gpt2Constants) -> None:
    """Run all blocks on ``acts.x[0]``, the embeddings, and fill every activation; R is a multiple of `sequences`.

    Activations of one layer, with the two rows of ``acts.x`` in turn, are enough for `head_loss`.
    """
    w, a, lora = weights, acts, constants.lora
    for n in range(w.qkv_weight.shape[0]):
        k = n % a.qkv.shape[0]  # an evaluation keeps one layer
        x, x_mid, x_next = a.x[n % a.x.shape[0]], a.x_mid[k], a.x[(n + 1) % a.x.shape[0]]
        ln1, ln2 = Affine(w.ln1_weight[n], w.ln1_bias[n]), Affine(w.ln2_weight[n], w.ln2_bias[n])
        layernorm_forward(x, ln1, a.h, RowStatistics(a.ln1_mean[k], a.ln1_rstd[k]))
        linear_forward(a.h, w.qkv_weight[n], w.qkv_bias[n], a.qkv[k])
        given = lora_input(lora, a.dropout_key, n, LoraSite.QKV, a.dropped)
        lora_forward(a.h, LoraAdapter(w.qkv_a[n], w.qkv_b[n]), given, a.qkv_xa[k], a.qkv[k])
        dropout = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
        attention = AttentionActivations(a.qkv[k], a.attn[k], a.attn_lse[k], a.starts, dropout)
        attention_forward(attention, sequences, HeadCounts(constants.heads, constants.heads), a.scores)
        dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
        branch = residual_branch(dropout, x, a.h, x_mid)
        linear_residual_forward(a.attn[k], w.attn_proj_weight[n], w.attn_proj_bias[n], branch.residual, branch.out)
        given = lora_input(lora, a.dropout_key, n, LoraSite.ATTN_PROJ, a.dropped)
        lora_forward(a.attn[k], LoraAdapter(w.attn_proj_a[n], w.attn_proj_b[n]), given, a.attn_proj_xa[k], branch.out)
        dropout_residual(branch.out, dropout, x, x_mid)
        layernorm_forward(x_mid, ln2, a.h, RowStatistics(a.ln2_mean[k], a.ln2_rstd[k]))
        linear_forward(a.h, w.fc_weight[n], w.fc_bias[n], a.fc[k])
        given = lora_input(lora, a.dropout_key, n, LoraSite.UP, a.dropped)
        lora_forward(a.h, LoraAdapter(w.fc_a[n], w.fc_b[n]), given, a.fc_xa[k], a.fc[k])
        gelu_forward(a.fc[k], a.gelu)
        dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.MLP)
        branch = residual_branch(dropout, x_mid, a.h, x_next)
        linear_residual_forward(a.gelu, w.mlp_proj_weight[n], w.mlp_proj_bias[n], branch.residual, branch.out)
        given = lora_input(lora, a.dropout_key, n, LoraSite.DOWN, a.dropped)
        lora_forward(a.gelu, LoraAdapter(w.mlp_proj_a[n], w.mlp_proj_b[n]), given, a.mlp_proj_xa[k], branch.out)
        dropout_residual(branch.out, dropout, x_mid, x_next)


class _NormedLinear(NamedTuple):
    """Parameters of a LayerNorm and of the linear layer that reads its output, or their gradients."""

    norm: Affine
    weight: Floats  # (C, O)
    bias: Floats  # (O,)


@jit_inline_body
def _qkv_layer(w: Weights, n: int) -> _NormedLinear:
    """Return the first LayerNorm of block `n` with the projection to queries, keys and values."""
    return _NormedLinear(Affine(w.ln1_weight[n], w.ln1_bias[n]), w.qkv_weight[n], w.qkv_bias[n])


@jit_inline_body
def _fc_layer(w: Weights, n: int) -> _NormedLinear:
    """Return the second LayerNorm of block `n` with the first layer of the MLP."""
    return _NormedLinear(Affine(w.ln2_weight[n], w.ln2_bias[n]), w.fc_weight[n], w.fc_bias[n])


@jit_inline_body
def norm_gradients(weight: Floats, bias: Floats, scratch: Scratch) -> Affine:
    """Return the gradients of a LayerNorm, with a row of ``scratch.gelu`` in place of those of frozen tensors.

    The sums over a row in a LayerNorm's backward pass and its gradients are one loop: without the gradients, the order
    of the sums would be another. Nothing reads ``scratch.gelu`` after that.
    """
    channels, unused = scratch.dx.shape[1], scratch.gelu[0]
    return Affine(weight if weight.size else unused[:channels], bias if bias.size else unused[channels : 2 * channels])


@jit_kernel
def _normed_linear_backward(
    d_out: Floats,
    x: Floats,
    statistics: RowStatistics,
    layer: _NormedLinear,
    grads: _NormedLinear,
    lora: LoraBackward,
    scratch: Scratch,
    accumulate: bool,
) -> None:
    """Add the gradient of `x`, the input of the LayerNorm, to ``scratch.dx``, given that of the linear layer's output.

    The gradients of the parameters are written, or added when `accumulate`.
    """
    s = scratch
    linear_backward_input(d_out, layer.weight, s.dh)
    lora_backward_input(d_out, lora, s.dh)
    if grads.weight.size or lora.grads.a.size:
        layernorm_apply(x, layer.norm, statistics, s.h)
    linear_backward_weight(s.h, d_out, grads.weight, accumulate)
    linear_backward_bias(d_out, grads.bias, accumulate)
    lora_backward_weight(s.h, d_out, lora, accumulate)
    d_norm = norm_gradients(grads.norm.weight, grads.norm.bias, s)
    layernorm_backward(s.dh, x, layer.norm.weight, statistics, s.dx, d_norm, accumulate)


@jit_kernel
def _mlp_backward(
    weights: Weights,
    acts: Activations,
    grads: Weights,
    scratch: Scratch,
    n: int,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of ``x[n + 1]`` to that of ``x_mid[n]``."""
    w, a, g, s, lora, accumulate = weights, acts, grads, scratch, constants.lora, ticket.accumulate
    part = mlp_part(w.wte.shape[0], w.qkv_weight.shape[0], n)
    wait_for_predecessor(ticket, part)
    of_proj = LoraBackward(
        LoraAdapter(w.mlp_proj_a[n], w.mlp_proj_b[n]), LoraAdapter(g.mlp_proj_a[n], g.mlp_proj_b[n]),
        a.mlp_proj_xa[n], s.d_xa, lora.down, lora_input(lora, a.dropout_key, n, LoraSite.DOWN, s.dropped),
    )  # fmt: skip
    dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.MLP)
    d_out = branch_gradient(s.dx, dropout, s.dh)
    linear_backward_input(d_out, w.mlp_proj_weight[n], s.d_fc)
    lora_backward_input(d_out, of_proj, s.d_fc)
    gelu_backward(a.fc[n], s.d_fc, s.gelu)
    linear_backward_weight(s.gelu, d_out, g.mlp_proj_weight[n], accumulate)
    linear_backward_bias(d_out, g.mlp_proj_bias[n], accumulate)
    lora_backward_weight(s.gelu, d_out, of_proj, accumulate)
    statistics = RowStatistics(a.ln2_mean[n], a.ln2_rstd[n])
    of_fc = LoraBackward(
        LoraAdapter(w.fc_a[n], w.fc_b[n]), LoraAdapter(g.fc_a[n], g.fc_b[n]),
        a.fc_xa[n], s.d_xa, lora.up, lora_input(lora, a.dropout_key, n, LoraSite.UP, s.dropped),
    )  # fmt: skip
    _normed_linear_backward(s.d_fc, a.x_mid[n], statistics, _fc_layer(w, n), _fc_layer(g, n), of_fc, s, accumulate)
    mark_part_done(ticket, part)


@jit_kernel
def _attention_backward(
    weights: Weights,
    acts: Activations,
    grads: Weights,
    scratch: Scratch,
    n: int,
    sequences: int,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` from the gradient of ``x_mid[n]`` to that of ``x[n]``."""
    w, a, g, s, lora, accumulate = weights, acts, grads, scratch, constants.lora, ticket.accumulate
    part = mlp_part(w.wte.shape[0], w.qkv_weight.shape[0], n) + 1
    wait_for_predecessor(ticket, part)
    of_proj = LoraBackward(
        LoraAdapter(w.attn_proj_a[n], w.attn_proj_b[n]), LoraAdapter(g.attn_proj_a[n], g.attn_proj_b[n]),
        a.attn_proj_xa[n], s.d_xa, lora.attn_proj, lora_input(lora, a.dropout_key, n, LoraSite.ATTN_PROJ, s.dropped),
    )  # fmt: skip
    dropout = residual_dropout(constants.dropout, a.dropout_key, n, ResidualSite.ATTENTION)
    d_out = branch_gradient(s.dx, dropout, s.dh)
    linear_backward_weight(a.attn[n], d_out, g.attn_proj_weight[n], accumulate)
    linear_backward_bias(d_out, g.attn_proj_bias[n], accumulate)
    linear_backward_input(d_out, w.attn_proj_weight[n], s.d_attn)
    lora_backward_input(d_out, of_proj, s.d_attn)
    lora_backward_weight(a.attn[n], d_out, of_proj, accumulate)
    of_heads = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, of_heads)
    attention_backward(s.d_attn, attention, sequences, HeadCounts(constants.heads, constants.heads), s.d_qkv, s.scores)
    statistics = RowStatistics(a.ln1_mean[n], a.ln1_rstd[n])
    of_qkv = LoraBackward(
        LoraAdapter(w.qkv_a[n], w.qkv_b[n]), LoraAdapter(g.qkv_a[n], g.qkv_b[n]),
        a.qkv_xa[n], s.d_xa, lora.qkv, lora_input(lora, a.dropout_key, n, LoraSite.QKV, s.dropped),
    )  # fmt: skip
    _normed_linear_backward(s.d_qkv, a.x[n], statistics, _qkv_layer(w, n), _qkv_layer(g, n), of_qkv, s, accumulate)
    mark_part_done(ticket, part)


@jit_kernel
def blocks_backward(
    weights: Weights,
    acts: Activations,
    grads: Weights,
    scratch: Scratch,
    sequences: int,
    constants: Gpt2Constants,
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
    weights: Weights, acts: Activations, targets: TokenIds, constants: Gpt2Constants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient.

    `targets` (R,) are in 0 .. V - 1 or `IGNORED_TARGET`; `logits` (rows of a chunk, V) is scratch.
    """
    x_final = acts.x[weights.qkv_weight.shape[0] % acts.x.shape[0]]
    affine = Affine(weights.lnf_weight, weights.lnf_bias)
    for r in range(x_final.shape[0]):
        layernorm_row(x_final[r], affine, acts.h[r])
    return projection_loss(acts.h, weights.wte, targets, logits)


@jit_kernel
def head_backward(
    weights: Weights,
    acts: Activations,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: Scratch,
    constants: Gpt2Constants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x[L]`` to ``scratch.dx``.

    Every gradient is multiplied by `scale` (1 / tokens of the batch gives the gradient of the mean). Those of `wte`,
    `lnf_weight` and `lnf_bias` are written, or added if ``ticket.accumulate``. The logits exist for the rows of one
    chunk (``scratch.logits.shape[0]``) at a time. The rows of `wte` are the first parts of the `ticket`.
    """
    w, s, x_final = weights, scratch, acts.x[acts.x.shape[0] - 1]
    statistics = RowStatistics(s.lnf_mean, s.lnf_rstd)
    layernorm_forward(x_final, Affine(w.lnf_weight, w.lnf_bias), s.h, statistics)
    s.dx.fill(0.0)  # `layernorm_backward` adds to it
    loss = projection_backward(s.h, w.wte, targets, scale, constants.loss, grads.wte, s.dh, s.logits, ticket)
    d_affine = norm_gradients(grads.lnf_weight, grads.lnf_bias, s)
    layernorm_backward(s.dh, x_final, w.lnf_weight, statistics, s.dx, d_affine, ticket.accumulate)
    mark_part_done(ticket, last_head_part(w.wte.shape[0]))
    return loss
