"""The Llama family in bfloat16 by a team: `kernels.bits16.llama`, in equal bits, as `gpt2_team` divides GPT-2.

A member has whole groups of heads. Beside what `gpt2_team` excludes, there are no norms of queries and keys.
"""

from threadloom.kernels.bits16.attention import attention_heads_backward, attention_heads_forward
from threadloom.kernels.bits16.head import ProjectionScratch
from threadloom.kernels.bits16.layernorm import NormalizedRows
from threadloom.kernels.bits16.linear import (
    linear_backward_bias_columns,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_residual_forward,
)
from threadloom.kernels.bits16.rmsnorm import (
    RmsNormGradients,
    rmsnorm_apply,
    rmsnorm_apply_transposed,
    rmsnorm_backward,
    rmsnorm_backward_columns,
    rmsnorm_forward,
)
from threadloom.kernels.bits16.team_parts import (
    column_sums,
    projection_part_backward,
    tiles_of,
    transposed_part,
    weight_gradient,
)
from threadloom.kernels.bits16.tensors import (
    LlamaActivations16,
    LlamaScratch16,
    LlamaWeights16,
    PackedPair,
    SecondProduct,
)
from threadloom.kernels.common import (
    AttentionActivations,
    LlamaConstants,
    LlamaWeights,
    Team,
    attention_dropout,
    heads_of_member,
    meet,
    rotate_heads_backward,
    rotate_heads_forward,
    swiglu_backward,
    swiglu_forward,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.simd import Bits16


@jit_kernel
def team_blocks_forward(
    weights: LlamaWeights16, acts: LlamaActivations16, sequences: int, constants: LlamaConstants, team: Team
) -> None:
    """Compute the member's part of `kernels.bits16.llama.blocks_forward`; ``acts.thread`` is its own."""
    w, p, a, c = weights.master, weights.packed, acts, constants
    rows = tiles_of(a.h.shape[0], team)
    i, j = rows
    x, h, gated, upcast = a.x[i:j], a.h[i:j], a.gated[i:j], a.thread.upcast
    for n in range(w.norm1_weight.shape[0]):
        kept1 = NormalizedRows(a.normed1[n][i:j], a.rstd1[n][i:j])
        kept2 = NormalizedRows(a.normed2[n][i:j], a.rstd2[n][i:j])
        rmsnorm_forward(x, w.norm1_weight[n], c.epsilon, w.attn_proj_bias[n], kept1, h)
        no_adapter = SecondProduct(a.qkv_xa[n][i:j], p.qkv_b[n])
        linear_forward(h, p.qkv[n], no_adapter, w.qkv_bias[n], a.qkv[n][i:j], upcast)
        rotate_heads_forward(a.qkv[n], rows, c, n, sequences, a.starts)
        dropout = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
        attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
        meet(team)  # keys and values of all rows
        attention_heads_forward(attention, sequences, c.heads, heads_of_member(c, team), a.thread.attention)
        meet(team)  # all heads of the rows
        no_adapter = SecondProduct(a.attn_proj_xa[n][i:j], p.attn_proj_b[n])
        linear_residual_forward(a.attn[n][i:j], p.attn_proj[n], no_adapter, x, upcast)
        rmsnorm_forward(x, w.norm2_weight[n], c.epsilon, w.down_bias[n], kept2, h)
        gate_up = a.gate_up[min(n, a.gate_up.shape[0] - 1)][i:j]
        no_adapter = SecondProduct(a.gate_up_xa[n][i:j], p.gate_up_b[n])
        linear_forward(h, p.gate_up[n], no_adapter, w.gate_up_bias[n], gate_up, upcast)
        swiglu_forward(gate_up, gated)
        linear_residual_forward(gated, p.down[n], SecondProduct(a.down_xa[n][i:j], p.down_b[n]), x, upcast)


@jit_kernel
def _norm_backward_rows(kept: NormalizedRows, weight: Floats, scratch: LlamaScratch16, team: Team) -> None:
    """Add the member's rows of an RMS norm's input gradient to ``scratch.dx``, given ``scratch.dh``."""
    s = scratch
    i, j = tiles_of(s.dx.shape[0], team)
    of_rows, no_gradients = NormalizedRows(kept.n[i:j], kept.rstd[i:j]), RmsNormGradients(kept.rstd[:0], kept.rstd[:0])
    rmsnorm_backward(s.dh[i:j], of_rows, weight, s.dx[i:j], s.dx16[i:j], no_gradients, False)


@jit_kernel
def _norm_backward_columns(
    n: Bits16, d_weight: Floats, d_added: Floats, scratch: LlamaScratch16, accumulate: bool, team: Team
) -> None:
    """Write or add the member's columns of the gradients of an RMS norm, whose normalised rows are `n`."""
    columns = tiles_of(n.shape[1], team)
    rmsnorm_backward_columns(scratch.dh, n, columns, d_weight, accumulate)
    column_sums(scratch.dx, columns, d_added, accumulate)


@jit_kernel
def _normed_weight_gradient(
    n: Bits16, norm: Floats, d_out: Bits16, d_weight: Floats, scratch: LlamaScratch16, accumulate: bool, team: Team
) -> None:
    """Write or add the member's rows of the gradient of a weight whose input was an RMS norm's output."""
    if d_weight.size:
        inputs = tiles_of(d_weight.shape[0], team)
        i, j = inputs
        x_t = transposed_part(n, inputs, scratch.transposed)
        rmsnorm_apply_transposed(x_t, norm[i:j])
        linear_backward_weight(x_t, d_out, d_weight[i:j], accumulate, scratch.thread.upcast)


@jit_kernel
def _recompute_gate_up(
    weights: LlamaWeights16, acts: LlamaActivations16, scratch: LlamaScratch16, n: int, team: Team
) -> None:
    """Recompute the member's rows of the gate and up of block `n`, if forward kept only those of the last block."""
    w, p, a, layers = weights.master, weights.packed, acts, weights.master.norm1_weight.shape[0]
    if a.gate_up.shape[0] < layers and n < layers - 1:
        i, j = tiles_of(a.h.shape[0], team)
        h = scratch.h[i:j]
        rmsnorm_apply(a.normed2[n][i:j], w.norm2_weight[n], h)
        no_adapter = SecondProduct(a.gate_up_xa[n][i:j], p.gate_up_b[n])
        linear_forward(h, p.gate_up[n], no_adapter, w.gate_up_bias[n], a.gate_up[0][i:j], scratch.thread.upcast)


@jit_kernel
def _mlp_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    n: int,
    accumulate: bool,
    team: Team,
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient of the output of block `n` to that between its halves.

    The members have met when ``dx16`` was complete.
    """
    w, p, a, g, s = weights.master, weights.packed, acts, grads, scratch
    i, j = tiles_of(s.dx.shape[0], team)
    no_adapter = SecondProduct(a.down_xa[n][i:j], p.down_a[n])
    linear_backward_input(s.dx16[i:j], PackedPair(p.down[n], p.down_t[n]), no_adapter, s.d_gated[i:j], False, s.thread)
    _recompute_gate_up(weights, acts, scratch, n, team)
    before = a.gate_up[min(n, a.gate_up.shape[0] - 1)][i:j]
    swiglu_backward(before, s.d_gated[i:j], s.d_gate_up[i:j], s.gated[i:j])
    meet(team)  # the gate and its gradient of all rows
    weight_gradient(s.gated, s.dx16, g.down_weight[n], accumulate, s.transposed, s.thread.upcast, team)
    d_bias = g.gate_up_bias[n]
    linear_backward_bias_columns(s.d_gate_up, tiles_of(d_bias.shape[0], team), d_bias, accumulate)
    no_adapter, gate_up = SecondProduct(a.gate_up_xa[n][i:j], p.gate_up_a[n]), PackedPair(p.gate_up[n], p.gate_up_t[n])
    linear_backward_input(s.d_gate_up[i:j], gate_up, no_adapter, s.dh[i:j], False, s.thread)
    meet(team)  # nobody reads dx16 or the rows of `transposed` any more
    _normed_weight_gradient(a.normed2[n], w.norm2_weight[n], s.d_gate_up, g.gate_up_weight[n], s, accumulate, team)
    _norm_backward_rows(NormalizedRows(a.normed2[n], a.rstd2[n]), w.norm2_weight[n], s, team)


@jit_kernel
def _attention_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    n: int,
    sequences: int,
    constants: LlamaConstants,
    accumulate: bool,
    team: Team,
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient between the halves of block `n` to that of its input.

    The columns of the gradients of the second norm are computed here, after the first meeting.
    """
    w, p, a, g, s, c = weights.master, weights.packed, acts, grads, scratch, constants
    rows = tiles_of(s.dx.shape[0], team)
    i, j = rows
    no_adapter = SecondProduct(a.attn_proj_xa[n][i:j], p.attn_proj_a[n])
    attn_proj = PackedPair(p.attn_proj[n], p.attn_proj_t[n])
    linear_backward_input(s.dx16[i:j], attn_proj, no_adapter, s.d_attn[i:j], False, s.thread)
    meet(team)  # dx, dx16, dh and d_attn of all rows
    _norm_backward_columns(a.normed2[n], g.norm2_weight[n], g.attn_proj_bias[n], s, accumulate, team)
    weight_gradient(a.attn[n], s.dx16, g.attn_proj_weight[n], accumulate, s.transposed, s.thread.upcast, team)
    dropout = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
    part = heads_of_member(c, team)
    attention_heads_backward(s.d_attn, attention, sequences, c.heads, part, s.d_qkv, s.thread.attention)
    meet(team)  # d_qkv of all heads; nobody reads dx, dx16 or dh of others any more
    rotate_heads_backward(s.d_qkv, rows, c, n, sequences, a.starts)
    no_adapter = SecondProduct(a.qkv_xa[n][i:j], p.qkv_a[n])
    linear_backward_input(s.d_qkv[i:j], PackedPair(p.qkv[n], p.qkv_t[n]), no_adapter, s.dh[i:j], False, s.thread)
    _norm_backward_rows(NormalizedRows(a.normed1[n], a.rstd1[n]), w.norm1_weight[n], s, team)
    meet(team)  # d_qkv, dx, dx16 and dh of all rows
    linear_backward_bias_columns(s.d_qkv, tiles_of(g.qkv_bias[n].shape[0], team), g.qkv_bias[n], accumulate)
    _normed_weight_gradient(a.normed1[n], w.norm1_weight[n], s.d_qkv, g.qkv_weight[n], s, accumulate, team)
    below = g.down_bias[n - 1] if n > 0 else g.down_bias[n, :0]
    _norm_backward_columns(a.normed1[n], g.norm1_weight[n], below, s, accumulate, team)


@jit_kernel
def team_blocks_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    sequences: int,
    constants: LlamaConstants,
    accumulate: bool,
    team: Team,
) -> None:
    """Compute the member's part of `kernels.bits16.llama.blocks_backward`."""
    for n in range(weights.master.norm1_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, accumulate, team)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, accumulate, team)


@jit_kernel
def team_head_backward(
    weights: LlamaWeights16,
    acts: LlamaActivations16,
    targets: TokenIds,
    scale: float,
    grads: LlamaWeights,
    scratch: LlamaScratch16,
    constants: LlamaConstants,
    accumulate: bool,
    team: Team,
) -> float:
    """Compute the member's part of `kernels.bits16.llama.head_backward`; return the sum of the cross-entropies.

    On return the members have met.
    """
    w, p, g, s = weights.master, weights.packed, grads, scratch
    i, j = tiles_of(s.dx.shape[0], team)
    of_rows = NormalizedRows(s.normed[i:j], s.rstd[i:j])
    rmsnorm_forward(acts.x[i:j], w.normf_weight, constants.epsilon, s.rstd[:0], of_rows, s.h[i:j])
    s.dx[i:j].fill(0.0)  # `rmsnorm_backward` adds to it
    meet(team)  # h of all rows
    head = PackedPair(p.head, p.head_t)
    projection = ProjectionScratch(s.logits, s.d_logits, s.d_logits_t, s.thread.upcast)
    loss = projection_part_backward(s.h, head, targets, scale, g.head, s.dh, projection, accumulate, team)
    meet(team)  # all columns of dh
    _norm_backward_rows(NormalizedRows(s.normed, s.rstd), w.normf_weight, s, team)
    meet(team)  # dx and dx16 of all rows
    _norm_backward_columns(s.normed, g.normf_weight, g.down_bias[g.down_bias.shape[0] - 1], s, accumulate, team)
    return loss
