"""GPT-2 in float32 for one micro-batch whose work a team of threads divides: `kernels.float32.gpt2`, in equal bits.

Every member calls each kernel, with the same arrays but scratch of its own for scores of attention. It computes its
rows of what depends on rows alone, its heads of attention, its rows of the gradient of a matrix (columns of the
layer's input), and its columns of sums over rows. The members meet before a step reads what others wrote, and before
they write what others still read.

There is neither dropout within the blocks, nor an adapter, nor a term of the loss beside cross-entropy, nor a lane that
other micro-batches write at the same time. Summing the losses of the rows is the only sum of another form.
"""

from threadloom.kernels.common import (
    Affine,
    AttentionActivations,
    Gpt2Constants,
    HeadCounts,
    Team,
    Weights,
    attention_dropout,
    meet,
    part_of,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.float32.attention import attention_heads_backward, attention_heads_forward
from threadloom.kernels.float32.gelu import gelu_backward, gelu_forward
from threadloom.kernels.float32.layernorm import (
    RowStatistics,
    layernorm_apply,
    layernorm_backward,
    layernorm_backward_columns,
    layernorm_forward,
)
from threadloom.kernels.float32.linear import linear_backward_input, linear_forward, linear_residual_forward
from threadloom.kernels.float32.team_parts import linear_gradients, projection_part_backward
from threadloom.kernels.float32.tensors import Activations, Scratch


@jit_kernel
def team_blocks_forward(
    weights: Weights, acts: Activations, sequences: int, constants: Gpt2Constants, team: Team
) -> None:
    """Compute the member's part of `kernels.float32.gpt2.blocks_forward`; ``acts.scores`` is its own."""
    w, a, heads = weights, acts, HeadCounts(constants.heads, constants.heads)
    i, j = part_of(a.h.shape[0], team)
    h, gelu = a.h[i:j], a.gelu[i:j]
    for n in range(w.qkv_weight.shape[0]):
        x, x_mid, x_next = a.x[n][i:j], a.x_mid[n][i:j], a.x[n + 1][i:j]
        ln1, ln2 = Affine(w.ln1_weight[n], w.ln1_bias[n]), Affine(w.ln2_weight[n], w.ln2_bias[n])
        layernorm_forward(x, ln1, h, RowStatistics(a.ln1_mean[n][i:j], a.ln1_rstd[n][i:j]))
        linear_forward(h, w.qkv_weight[n], w.qkv_bias[n], a.qkv[n][i:j])
        dropout = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
        attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
        meet(team)  # keys and values of all rows
        attention_heads_forward(attention, sequences, heads, part_of(constants.heads, team), a.scores)
        meet(team)  # all heads of the rows
        linear_residual_forward(a.attn[n][i:j], w.attn_proj_weight[n], w.attn_proj_bias[n], x, x_mid)
        layernorm_forward(x_mid, ln2, h, RowStatistics(a.ln2_mean[n][i:j], a.ln2_rstd[n][i:j]))
        fc = a.fc[n][i:j]
        linear_forward(h, w.fc_weight[n], w.fc_bias[n], fc)
        gelu_forward(fc, gelu)
        linear_residual_forward(gelu, w.mlp_proj_weight[n], w.mlp_proj_bias[n], x_mid, x_next)


@jit_kernel
def _norm_backward(
    x: Floats,
    weight: Floats,
    statistics: RowStatistics,
    d_affine: Affine,
    scratch: Scratch,
    accumulate: bool,
    team: Team,
) -> None:
    """Add the member's rows of a LayerNorm's input gradient to ``scratch.dx``, given ``scratch.dh``.

    Write or add its columns of the gradients of weight and bias. ``scratch.gelu`` takes the sums over its rows, which
    nobody reads: without them the loop over a row would be another, and so the order of its sums.
    """
    s, channels = scratch, x.shape[1]
    i, j = part_of(x.shape[0], team)
    if i < j:
        unused = Affine(s.gelu[i][:channels], s.gelu[i][channels : 2 * channels])
        of_rows = RowStatistics(statistics.mean[i:j], statistics.rstd[i:j])
        layernorm_backward(s.dh[i:j], x[i:j], weight, of_rows, s.dx[i:j], unused, False)
    layernorm_backward_columns(s.dh, x, statistics, part_of(channels, team), d_affine, accumulate)


@jit_kernel
def _mlp_backward(
    weights: Weights, acts: Activations, grads: Weights, scratch: Scratch, n: int, accumulate: bool, team: Team
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient of ``x[n + 1]`` to that of ``x_mid[n]``."""
    w, a, g, s = weights, acts, grads, scratch
    i, j = part_of(s.dx.shape[0], team)
    statistics = RowStatistics(a.ln2_mean[n], a.ln2_rstd[n])
    linear_backward_input(s.dx[i:j], w.mlp_proj_weight[n], s.d_fc[i:j])
    gelu_backward(a.fc[n][i:j], s.d_fc[i:j], s.gelu[i:j])
    meet(team)  # GELU and its gradient of all rows
    linear_gradients(s.gelu, s.dx, g.mlp_proj_weight[n], g.mlp_proj_bias[n], accumulate, team)
    linear_backward_input(s.d_fc[i:j], w.fc_weight[n], s.dh[i:j])
    if g.fc_weight[n].size:
        of_rows = RowStatistics(statistics.mean[i:j], statistics.rstd[i:j])
        layernorm_apply(a.x_mid[n][i:j], Affine(w.ln2_weight[n], w.ln2_bias[n]), of_rows, s.h[i:j])
    meet(team)  # h and dh of all rows; nobody reads dx or gelu of others any more
    linear_gradients(s.h, s.d_fc, g.fc_weight[n], g.fc_bias[n], accumulate, team)
    d_affine = Affine(g.ln2_weight[n], g.ln2_bias[n])
    _norm_backward(a.x_mid[n], w.ln2_weight[n], statistics, d_affine, s, accumulate, team)


@jit_kernel
def _attention_backward(
    weights: Weights,
    acts: Activations,
    grads: Weights,
    scratch: Scratch,
    n: int,
    sequences: int,
    constants: Gpt2Constants,
    accumulate: bool,
    team: Team,
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient of ``x_mid[n]`` to that of ``x[n]``."""
    w, a, g, s = weights, acts, grads, scratch
    i, j = part_of(s.dx.shape[0], team)
    heads, of_member = HeadCounts(constants.heads, constants.heads), part_of(constants.heads, team)
    statistics = RowStatistics(a.ln1_mean[n], a.ln1_rstd[n])
    linear_backward_input(s.dx[i:j], w.attn_proj_weight[n], s.d_attn[i:j])
    meet(team)  # dx and d_attn of all rows
    linear_gradients(a.attn[n], s.dx, g.attn_proj_weight[n], g.attn_proj_bias[n], accumulate, team)
    dropout = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
    attention_heads_backward(s.d_attn, attention, sequences, heads, of_member, s.d_qkv, s.scores)
    meet(team)  # d_qkv of all heads; nobody reads dx of others any more
    linear_backward_input(s.d_qkv[i:j], w.qkv_weight[n], s.dh[i:j])
    if g.qkv_weight[n].size:
        of_rows = RowStatistics(statistics.mean[i:j], statistics.rstd[i:j])
        layernorm_apply(a.x[n][i:j], Affine(w.ln1_weight[n], w.ln1_bias[n]), of_rows, s.h[i:j])
    meet(team)  # h and dh of all rows
    linear_gradients(s.h, s.d_qkv, g.qkv_weight[n], g.qkv_bias[n], accumulate, team)
    d_affine = Affine(g.ln1_weight[n], g.ln1_bias[n])
    _norm_backward(a.x[n], w.ln1_weight[n], statistics, d_affine, s, accumulate, team)


@jit_kernel
def team_blocks_backward(
    weights: Weights,
    acts: Activations,
    grads: Weights,
    scratch: Scratch,
    sequences: int,
    constants: Gpt2Constants,
    accumulate: bool,
    team: Team,
) -> None:
    """Compute the member's part of `kernels.float32.gpt2.blocks_backward`; ``scratch.scores`` is its own."""
    for n in range(weights.qkv_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, accumulate, team)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, accumulate, team)


@jit_kernel
def team_head_backward(
    weights: Weights,
    acts: Activations,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: Scratch,
    constants: Gpt2Constants,
    accumulate: bool,
    team: Team,
) -> float:
    """Compute the member's part of `kernels.float32.gpt2.head_backward`; return the sum of the cross-entropies."""
    w, g, s, x_final = weights, grads, scratch, acts.x[acts.x.shape[0] - 1]
    i, j = part_of(x_final.shape[0], team)
    statistics = RowStatistics(s.lnf_mean, s.lnf_rstd)
    of_rows = RowStatistics(s.lnf_mean[i:j], s.lnf_rstd[i:j])
    layernorm_forward(x_final[i:j], Affine(w.lnf_weight, w.lnf_bias), s.h[i:j], of_rows)
    s.dx[i:j].fill(0.0)  # `layernorm_backward` adds to it
    meet(team)  # h of all rows: the rows of a chunk are divided anew
    loss = projection_part_backward(s.h, w.wte, targets, scale, g.wte, s.dh, s.logits, accumulate, team)
    _norm_backward(x_final, w.lnf_weight, statistics, Affine(g.lnf_weight, g.lnf_bias), s, accumulate, team)
    return loss
