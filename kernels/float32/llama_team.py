"""The Llama family in float32 by a team: `kernels.float32.llama`, in equal bits, as `gpt2_team` divides GPT-2.

A member has whole groups of heads. Beside what `gpt2_team` excludes, there are no norms of queries and keys.
"""

from threadloom.kernels.common import (
    AttentionActivations,
    LlamaConstants,
    LlamaWeights,
    Part,
    Team,
    attention_dropout,
    heads_of_member,
    meet,
    part_of,
    rotate_heads_backward,
    rotate_heads_forward,
    swiglu_backward,
    swiglu_forward,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.float32.attention import attention_heads_backward, attention_heads_forward
from threadloom.kernels.float32.linear import linear_backward_input, linear_forward, linear_residual_forward
from threadloom.kernels.float32.rmsnorm import (
    rmsnorm_apply,
    rmsnorm_backward,
    rmsnorm_backward_columns,
    rmsnorm_forward,
)
from threadloom.kernels.float32.team_parts import linear_gradients, projection_part_backward
from threadloom.kernels.float32.tensors import LlamaActivations, LlamaScratch


@jit_kernel
def team_blocks_forward(
    weights: LlamaWeights, acts: LlamaActivations, sequences: int, constants: LlamaConstants, team: Team
) -> None:
    """Compute the member's part of `kernels.float32.llama.blocks_forward`; ``acts.scores`` is its own."""
    w, a, c = weights, acts, constants
    i, j = part_of(a.h.shape[0], team)
    h, gated = a.h[i:j], a.gated[i:j]
    for n in range(w.qkv_weight.shape[0]):
        x, x_mid, x_next = a.x[n][i:j], a.x_mid[n][i:j], a.x[n + 1][i:j]
        rmsnorm_forward(x, w.norm1_weight[n], c.epsilon, h, a.rstd1[n][i:j])
        linear_forward(h, w.qkv_weight[n], w.qkv_bias[n], a.qkv[n][i:j])
        rotate_heads_forward(a.qkv[n], Part(i, j), c, n, sequences, a.starts)
        dropout = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
        attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
        meet(team)  # keys and values of all rows
        attention_heads_forward(attention, sequences, c.heads, heads_of_member(c, team), a.scores)
        meet(team)  # all heads of the rows
        linear_residual_forward(a.attn[n][i:j], w.attn_proj_weight[n], w.attn_proj_bias[n], x, x_mid)
        rmsnorm_forward(x_mid, w.norm2_weight[n], c.epsilon, h, a.rstd2[n][i:j])
        gate_up = a.gate_up[n][i:j]
        linear_forward(h, w.gate_up_weight[n], w.gate_up_bias[n], gate_up)
        swiglu_forward(gate_up, gated)
        linear_residual_forward(gated, w.down_weight[n], w.down_bias[n], x_mid, x_next)


@jit_kernel
def _norm_backward(
    x: Floats, weight: Floats, rstd: Floats, d_weight: Floats, scratch: LlamaScratch, accumulate: bool, team: Team
) -> None:
    """Add the member's rows of an RMS norm's input gradient to ``scratch.dx``, given ``scratch.dh``.

    Write or add its columns of the gradient of the weight.
    """
    s = scratch
    i, j = part_of(x.shape[0], team)
    rmsnorm_backward(s.dh[i:j], x[i:j], weight, rstd[i:j], s.dx[i:j], d_weight[:0], accumulate)
    rmsnorm_backward_columns(s.dh, x, rstd, part_of(x.shape[1], team), d_weight, accumulate)


@jit_kernel
def _mlp_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    n: int,
    accumulate: bool,
    team: Team,
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient of ``x[n + 1]`` to that of ``x_mid[n]``."""
    w, a, g, s = weights, acts, grads, scratch
    i, j = part_of(s.dx.shape[0], team)
    linear_backward_input(s.dx[i:j], w.down_weight[n], s.d_gated[i:j])
    swiglu_backward(a.gate_up[n][i:j], s.d_gated[i:j], s.d_gate_up[i:j], s.gated[i:j])
    meet(team)  # gate and its gradient of all rows
    linear_gradients(s.gated, s.dx, g.down_weight[n], g.down_bias[n], accumulate, team)
    linear_backward_input(s.d_gate_up[i:j], w.gate_up_weight[n], s.dh[i:j])
    if g.gate_up_weight[n].size:
        rmsnorm_apply(a.x_mid[n][i:j], w.norm2_weight[n], a.rstd2[n][i:j], s.h[i:j])
    meet(team)  # h and dh of all rows; nobody reads dx or the gate of others any more
    linear_gradients(s.h, s.d_gate_up, g.gate_up_weight[n], g.gate_up_bias[n], accumulate, team)
    _norm_backward(a.x_mid[n], w.norm2_weight[n], a.rstd2[n], g.norm2_weight[n], s, accumulate, team)


@jit_kernel
def _attention_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    n: int,
    sequences: int,
    constants: LlamaConstants,
    accumulate: bool,
    team: Team,
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient of ``x_mid[n]`` to that of ``x[n]``."""
    w, a, g, s, c = weights, acts, grads, scratch, constants
    i, j = part_of(s.dx.shape[0], team)
    linear_backward_input(s.dx[i:j], w.attn_proj_weight[n], s.d_attn[i:j])
    meet(team)  # dx and d_attn of all rows
    linear_gradients(a.attn[n], s.dx, g.attn_proj_weight[n], g.attn_proj_bias[n], accumulate, team)
    dropout = attention_dropout(c.dropout, a.dropout_key, n, c.heads.query)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
    attention_heads_backward(s.d_attn, attention, sequences, c.heads, heads_of_member(c, team), s.d_qkv, s.scores)
    meet(team)  # d_qkv of all heads; nobody reads dx of others any more
    rotate_heads_backward(s.d_qkv, Part(i, j), c, n, sequences, a.starts)
    linear_backward_input(s.d_qkv[i:j], w.qkv_weight[n], s.dh[i:j])
    if g.qkv_weight[n].size:
        rmsnorm_apply(a.x[n][i:j], w.norm1_weight[n], a.rstd1[n][i:j], s.h[i:j])
    meet(team)  # h, dh and d_qkv of all rows
    linear_gradients(s.h, s.d_qkv, g.qkv_weight[n], g.qkv_bias[n], accumulate, team)
    _norm_backward(a.x[n], w.norm1_weight[n], a.rstd1[n], g.norm1_weight[n], s, accumulate, team)


@jit_kernel
def team_blocks_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    sequences: int,
    constants: LlamaConstants,
    accumulate: bool,
    team: Team,
) -> None:
    """Compute the member's part of `kernels.float32.llama.blocks_backward`; ``scratch.scores`` is its own."""
    for n in range(weights.qkv_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, accumulate, team)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, accumulate, team)


@jit_kernel
def team_head_backward(
    weights: LlamaWeights,
    acts: LlamaActivations,
    targets: TokenIds,
    scale: float,
    grads: LlamaWeights,
    scratch: LlamaScratch,
    constants: LlamaConstants,
    accumulate: bool,
    team: Team,
) -> float:
    """Compute the member's part of `kernels.float32.llama.head_backward`; return the sum of the cross-entropies."""
    w, g, s, x_final = weights, grads, scratch, acts.x[acts.x.shape[0] - 1]
    i, j = part_of(x_final.shape[0], team)
    rmsnorm_forward(x_final[i:j], w.normf_weight, constants.epsilon, s.h[i:j], s.normf_rstd[i:j])
    s.dx[i:j].fill(0.0)  # `rmsnorm_backward` adds to it
    meet(team)  # h of all rows: the rows of a chunk are divided anew
    loss = projection_part_backward(s.h, w.head, targets, scale, g.head, s.dh, s.logits, accumulate, team)
    _norm_backward(x_final, w.normf_weight, s.normf_rstd, g.normf_weight, s, accumulate, team)
    return loss
