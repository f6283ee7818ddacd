"""GPT-2 in bfloat16 for one micro-batch whose work a team of threads divides: `kernels.bits16.gpt2`, in equal bits.

As `kernels.float32.gpt2_team`, under the same conditions. Beside the scratch of its thread a member has its own
``unused`` and ``d_logits_t``. The rows of ``transposed`` that a member writes are its columns of a layer's input, so
there is a meeting between the gradients of two weights. GELU's backward pass is divided over columns, since it also
sums over the rows.

A LayerNorm's backward pass is divided over rows, and after a meeting its sums over the rows over columns, with those of
the residual stream's gradient: the gradient of the bias that the LayerNorm added.
"""

from threadloom.kernels.bits16.attention import attention_heads_backward, attention_heads_forward
from threadloom.kernels.bits16.gelu import gelu_backward_columns
from threadloom.kernels.bits16.head import ProjectionScratch
from threadloom.kernels.bits16.layernorm import (
    LayerNormGradients,
    NormalizedRows,
    layernorm_apply,
    layernorm_apply_transposed,
    layernorm_backward,
    layernorm_backward_columns,
    layernorm_forward,
)
from threadloom.kernels.bits16.linear import (
    linear_backward_bias_columns,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_gelu_forward,
    linear_residual_forward,
)
from threadloom.kernels.bits16.team_parts import (
    column_sums,
    projection_part_backward,
    tiles_of,
    transposed_part,
    weight_gradient,
)
from threadloom.kernels.bits16.tensors import Activations16, PackedPair, Scratch16, SecondProduct, Weights16
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
from threadloom.kernels.simd import Bits16


@jit_kernel
def team_blocks_forward(
    weights: Weights16, acts: Activations16, sequences: int, constants: Gpt2Constants, team: Team
) -> None:
    """Compute the member's part of `kernels.bits16.gpt2.blocks_forward`; ``acts.thread`` is its own."""
    w, p, a, heads = weights.master, weights.packed, acts, HeadCounts(constants.heads, constants.heads)
    i, j = tiles_of(a.h.shape[0], team)
    x, h, gelu, upcast = a.x[i:j], a.h[i:j], a.gelu[i:j], a.thread.upcast
    for n in range(w.ln1_weight.shape[0]):
        kept1 = NormalizedRows(a.normed1[n][i:j], a.rstd1[n][i:j])
        kept2 = NormalizedRows(a.normed2[n][i:j], a.rstd2[n][i:j])
        layernorm_forward(x, Affine(w.ln1_weight[n], w.ln1_bias[n]), w.attn_proj_bias[n], kept1, h)
        no_adapter = SecondProduct(a.qkv_xa[n][i:j], p.qkv_b[n])
        linear_forward(h, p.qkv[n], no_adapter, w.qkv_bias[n], a.qkv[n][i:j], upcast)
        dropout = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
        attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
        meet(team)  # keys and values of all rows
        attention_heads_forward(attention, sequences, heads, part_of(constants.heads, team), a.thread.attention)
        meet(team)  # all heads of the rows
        no_adapter = SecondProduct(a.attn_proj_xa[n][i:j], p.attn_proj_b[n])
        linear_residual_forward(a.attn[n][i:j], p.attn_proj[n], no_adapter, x, upcast)
        layernorm_forward(x, Affine(w.ln2_weight[n], w.ln2_bias[n]), w.mlp_proj_bias[n], kept2, h)
        fc, no_adapter = a.fc[min(n, a.fc.shape[0] - 1)][i:j], SecondProduct(a.fc_xa[n][i:j], p.fc_b[n])
        linear_gelu_forward(h, p.fc[n], no_adapter, w.fc_bias[n], fc, gelu, upcast)
        no_adapter = SecondProduct(a.mlp_proj_xa[n][i:j], p.mlp_proj_b[n])
        linear_residual_forward(gelu, p.mlp_proj[n], no_adapter, x, upcast)


@jit_kernel
def _norm_backward_rows(kept: NormalizedRows, weight: Floats, scratch: Scratch16, team: Team) -> None:
    """Add the member's rows of a LayerNorm's input gradient to ``scratch.dx``, given ``scratch.dh``.

    ``scratch.unused`` takes the sums over its rows, which nobody reads: without them the loop over a row would be
    another, and so the order of its sums.
    """
    s = scratch
    i, j = tiles_of(s.dx.shape[0], team)
    unused = LayerNormGradients(s.unused[0], s.unused[1], s.unused[2])
    of_rows = NormalizedRows(kept.n[i:j], kept.rstd[i:j])
    layernorm_backward(s.dh[i:j], of_rows, weight, s.dx[i:j], s.dx16[i:j], unused, False)


@jit_kernel
def _norm_backward_columns(
    n: Bits16, d_affine: Affine, d_added: Floats, scratch: Scratch16, accumulate: bool, team: Team
) -> None:
    """Write or add the member's columns of the gradients of a LayerNorm, whose normalised rows are `n`."""
    columns = tiles_of(n.shape[1], team)
    layernorm_backward_columns(scratch.dh, n, columns, d_affine, accumulate)
    column_sums(scratch.dx, columns, d_added, accumulate)


@jit_kernel
def _normed_weight_gradient(
    n: Bits16, norm: Affine, d_out: Bits16, d_weight: Floats, scratch: Scratch16, accumulate: bool, team: Team
) -> None:
    """Write or add the member's rows of the gradient of a weight whose input was a LayerNorm's output."""
    if d_weight.size:
        inputs = tiles_of(d_weight.shape[0], team)
        i, j = inputs
        x_t = transposed_part(n, inputs, scratch.transposed)
        layernorm_apply_transposed(x_t, Affine(norm.weight[i:j], norm.bias[i:j]))
        linear_backward_weight(x_t, d_out, d_weight[i:j], accumulate, scratch.thread.upcast)


@jit_kernel
def _recompute_before_gelu(weights: Weights16, acts: Activations16, scratch: Scratch16, n: int, team: Team) -> None:
    """Recompute the member's rows of the input of the GELU of block `n`, if forward kept only that of the last."""
    w, p, a, layers = weights.master, weights.packed, acts, weights.master.ln1_weight.shape[0]
    if a.fc.shape[0] < layers and n < layers - 1:
        i, j = tiles_of(a.h.shape[0], team)
        h = scratch.h[i:j]
        layernorm_apply(a.normed2[n][i:j], Affine(w.ln2_weight[n], w.ln2_bias[n]), h)
        no_adapter = SecondProduct(a.fc_xa[n][i:j], p.fc_b[n])
        linear_forward(h, p.fc[n], no_adapter, w.fc_bias[n], a.fc[0][i:j], scratch.thread.upcast)


@jit_kernel
def _mlp_backward(
    weights: Weights16, acts: Activations16, grads: Weights, scratch: Scratch16, n: int, accumulate: bool, team: Team
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient of the output of block `n` to that between its halves.

    The members have met when ``dx16`` was complete.
    """
    w, p, a, g, s = weights.master, weights.packed, acts, grads, scratch
    i, j = tiles_of(s.dx.shape[0], team)
    no_adapter = SecondProduct(a.mlp_proj_xa[n][i:j], p.mlp_proj_a[n])
    mlp_proj = PackedPair(p.mlp_proj[n], p.mlp_proj_t[n])
    linear_backward_input(s.dx16[i:j], mlp_proj, no_adapter, s.d_fc[i:j], False, s.thread)
    _recompute_before_gelu(weights, acts, scratch, n, team)
    meet(team)  # GELU's input and the gradient of its output, of all rows
    fc, hidden = a.fc[min(n, a.fc.shape[0] - 1)], tiles_of(s.d_fc.shape[1], team)
    gelu_backward_columns(fc, s.d_fc, s.gelu, hidden, g.fc_bias[n], accumulate)
    weight_gradient(s.gelu, s.dx16, g.mlp_proj_weight[n], accumulate, s.transposed, s.thread.upcast, team)
    meet(team)  # d_fc of all columns; nobody reads dx16 or the rows of `transposed` any more
    norm = Affine(w.ln2_weight[n], w.ln2_bias[n])
    _normed_weight_gradient(a.normed2[n], norm, s.d_fc, g.fc_weight[n], s, accumulate, team)
    no_adapter = SecondProduct(a.fc_xa[n][i:j], p.fc_a[n])
    linear_backward_input(s.d_fc[i:j], PackedPair(p.fc[n], p.fc_t[n]), no_adapter, s.dh[i:j], False, s.thread)
    _norm_backward_rows(NormalizedRows(a.normed2[n], a.rstd2[n]), w.ln2_weight[n], s, team)


@jit_kernel
def _attention_backward(
    weights: Weights16,
    acts: Activations16,
    grads: Weights,
    scratch: Scratch16,
    n: int,
    sequences: int,
    constants: Gpt2Constants,
    accumulate: bool,
    team: Team,
) -> None:
    """Take the member's rows of ``scratch.dx`` from the gradient between the halves of block `n` to that of its input.

    The columns of the gradients of the second LayerNorm are computed here, after the first meeting.
    """
    w, p, a, g, s = weights.master, weights.packed, acts, grads, scratch
    i, j = tiles_of(s.dx.shape[0], team)
    heads, of_member = HeadCounts(constants.heads, constants.heads), part_of(constants.heads, team)
    no_adapter = SecondProduct(a.attn_proj_xa[n][i:j], p.attn_proj_a[n])
    attn_proj = PackedPair(p.attn_proj[n], p.attn_proj_t[n])
    linear_backward_input(s.dx16[i:j], attn_proj, no_adapter, s.d_attn[i:j], False, s.thread)
    meet(team)  # dx, dx16, dh and d_attn of all rows
    d_affine = Affine(g.ln2_weight[n], g.ln2_bias[n])
    _norm_backward_columns(a.normed2[n], d_affine, g.attn_proj_bias[n], s, accumulate, team)
    weight_gradient(a.attn[n], s.dx16, g.attn_proj_weight[n], accumulate, s.transposed, s.thread.upcast, team)
    dropout = attention_dropout(constants.dropout, a.dropout_key, n, constants.heads)
    attention = AttentionActivations(a.qkv[n], a.attn[n], a.attn_lse[n], a.starts, dropout)
    attention_heads_backward(s.d_attn, attention, sequences, heads, of_member, s.d_qkv, s.thread.attention)
    meet(team)  # d_qkv of all heads; nobody reads dx, dx16 or dh of others any more
    linear_backward_bias_columns(s.d_qkv, tiles_of(g.qkv_bias[n].shape[0], team), g.qkv_bias[n], accumulate)
    norm = Affine(w.ln1_weight[n], w.ln1_bias[n])
    _normed_weight_gradient(a.normed1[n], norm, s.d_qkv, g.qkv_weight[n], s, accumulate, team)
    no_adapter = SecondProduct(a.qkv_xa[n][i:j], p.qkv_a[n])
    linear_backward_input(s.d_qkv[i:j], PackedPair(p.qkv[n], p.qkv_t[n]), no_adapter, s.dh[i:j], False, s.thread)
    _norm_backward_rows(NormalizedRows(a.normed1[n], a.rstd1[n]), w.ln1_weight[n], s, team)
    meet(team)  # dx, dx16 and dh of all rows
    below = g.mlp_proj_bias[n - 1] if n > 0 else g.mlp_proj_bias[n][:0]
    _norm_backward_columns(a.normed1[n], Affine(g.ln1_weight[n], g.ln1_bias[n]), below, s, accumulate, team)


@jit_kernel
def team_blocks_backward(
    weights: Weights16,
    acts: Activations16,
    grads: Weights,
    scratch: Scratch16,
    sequences: int,
    constants: Gpt2Constants,
    accumulate: bool,
    team: Team,
) -> None:
    """Compute the member's part of `kernels.bits16.gpt2.blocks_backward`."""
    for n in range(weights.master.ln1_weight.shape[0] - 1, -1, -1):
        _mlp_backward(weights, acts, grads, scratch, n, accumulate, team)
        _attention_backward(weights, acts, grads, scratch, n, sequences, constants, accumulate, team)


@jit_kernel
def team_head_backward(
    weights: Weights16,
    acts: Activations16,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: Scratch16,
    constants: Gpt2Constants,
    accumulate: bool,
    team: Team,
) -> float:
    """Compute the member's part of `kernels.bits16.gpt2.head_backward`; return the sum of the cross-entropies.

    On return the members have met.
    """
    w, p, g, s = weights.master, weights.packed, grads, scratch
    i, j = tiles_of(s.dx.shape[0], team)
    of_rows = NormalizedRows(s.normed[i:j], s.rstd[i:j])
    layernorm_forward(acts.x[i:j], Affine(w.lnf_weight, w.lnf_bias), s.rstd[:0], of_rows, s.h[i:j])
    s.dx[i:j].fill(0.0)  # `layernorm_backward` adds to it
    meet(team)  # h of all rows
    packed = PackedPair(p.wte, p.wte_t)
    projection = ProjectionScratch(s.logits, s.d_logits, s.d_logits_t, s.thread.upcast)
    loss = projection_part_backward(s.h, packed, targets, scale, g.wte, s.dh, projection, accumulate, team)
    meet(team)  # all columns of dh
    _norm_backward_rows(NormalizedRows(s.normed, s.rstd), w.lnf_weight, s, team)
    meet(team)  # dx and dx16 of all rows
    last_bias = g.mlp_proj_bias[g.mlp_proj_bias.shape[0] - 1]
    _norm_backward_columns(s.normed, Affine(g.lnf_weight, g.lnf_bias), last_bias, s, accumulate, team)
    return loss
