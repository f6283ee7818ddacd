"""The whole model for one micro-batch in 16 bits, as `kernels.float32.gpt2` is in float32.

Weights, activations and the gradients that products read are bfloat16 or float16; the residual stream and its
gradient, statistics, softmax, loss and the gradients of the weights are float32. One source serves both formats: the
arrays' integer types say which is meant (`kernels.simd.scalar`, `kernels.bits16.linear`).

A LayerNorm adds the bias of the product whose result is added to the residual stream next, while it has the row in
hand; so the backward pass of a LayerNorm also gives the gradient of the bias that was added just before it.
"""

from threadloom.kernels.bits16.attention import attention_backward_low, attention_forward_low
from threadloom.kernels.bits16.gelu import bias_backward_low, cross_entropy_backward_low, gelu_backward_low
from threadloom.kernels.bits16.layernorm import layernorm_apply_turned, layernorm_backward_low, layernorm_forward_low
from threadloom.kernels.bits16.linear import product_float, product_gelu, product_outer, product_rounded
from threadloom.kernels.bits16.tensors import Forms, LowActivations, LowScratch, Workspace
from threadloom.kernels.common import HEAD_SLICE, AccumulationTicket, Weights, mark_part_done, wait_for_predecessor
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel
from threadloom.kernels.float32 import cross_entropy_forward
from threadloom.kernels.matmul import Op, transpose_bf16
from threadloom.kernels.simd import Bits16


@jit_kernel
def blocks_forward_low(
    weights: Weights,
    forms: Forms,
    acts: LowActivations,
    work: Workspace,
    sequences: int,
    heads: int,
) -> None:
    """Take ``acts.x`` from the embeddings through all blocks, and fill every activation."""
    w, f, a = weights, forms, acts
    for n in range(w.qkv_weight.shape[0]):
        layernorm_forward_low(a.x, w.ln1_weight[n], w.ln1_bias[n], w.attn_proj_bias[n], a.normed1[n], a.h, a.rstd1[n])
        product_rounded(a.h, f.qkv[n], Op.N, w.qkv_bias[n], a.qkv[n], work.wide)
        attention_forward_low(a.qkv[n], sequences, heads, a.attn[n], a.attn_lse[n], work.attention)
        product_float(a.attn[n], f.attn_proj[n], Op.N, a.x, True, work.wide)
        layernorm_forward_low(a.x, w.ln2_weight[n], w.ln2_bias[n], w.mlp_proj_bias[n], a.normed2[n], a.h, a.rstd2[n])
        product_gelu(a.h, f.fc[n], w.fc_bias[n], a.fc[n], a.gelu, work.wide)
        product_float(a.gelu, f.mlp_proj[n], Op.N, a.x, True, work.wide)


@jit_inline_body
def _weight_backward(
    x: Bits16,
    d_out: Bits16,
    turned: Bits16,
    weight: Floats,
    bias: Floats,
    d_weight: Floats,
    accumulate: bool,
    work: Workspace,
) -> None:
    """Give the gradient of a weight (I, O) from `x` (R, I), or from a LayerNorm's normalised rows with its `weight`.

    `turned` (at least I, R) takes the transpose; a `weight` of length 0 says that `x` is the input itself.
    """
    part = turned[: x.shape[1]]
    transpose_bf16(x, part)
    if weight.shape[0] > 0:
        layernorm_apply_turned(part, weight, bias)
    product_outer(part, d_out, d_weight, accumulate, work.wide)


@jit_inline_body
def _mlp_backward(
    weights: Weights,
    forms: Forms,
    acts: LowActivations,
    grads: Weights,
    scratch: LowScratch,
    work: Workspace,
    n: int,
    accumulate: bool,
) -> None:
    """Take ``scratch.dx`` from the gradient of the stream after block `n` to that between its two halves."""
    w, f, a, g, s = weights, forms, acts, grads, scratch
    nothing = s.d_bias[:0]
    product_rounded(s.dx_low, f.mlp_proj_t[n], Op.T, nothing, s.d_fc, work.wide)
    gelu_backward_low(a.fc[n], s.d_fc, s.gelu, g.fc_bias[n], accumulate)
    _weight_backward(s.gelu, s.dx_low, s.turned, nothing, nothing, g.mlp_proj_weight[n], accumulate, work)
    _weight_backward(a.normed2[n], s.d_fc, s.turned, w.ln2_weight[n], w.ln2_bias[n], g.fc_weight[n], accumulate, work)
    product_float(s.d_fc, f.fc_t[n], Op.T, s.dh, False, work.wide)
    layernorm_backward_low(
        s.dh, a.normed2[n], w.ln2_weight[n], a.rstd2[n], s.dx, s.dx_low,
        g.ln2_weight[n], g.ln2_bias[n], g.attn_proj_bias[n], True, accumulate,
    )  # fmt: skip


@jit_inline_body
def _attention_backward(
    weights: Weights,
    forms: Forms,
    acts: LowActivations,
    grads: Weights,
    scratch: LowScratch,
    work: Workspace,
    n: int,
    sequences: int,
    heads: int,
    accumulate: bool,
) -> None:
    """Take ``scratch.dx`` from the gradient between the halves of block `n` to that of what enters it."""
    w, f, a, g, s = weights, forms, acts, grads, scratch
    nothing = s.d_bias[:0]
    _weight_backward(a.attn[n], s.dx_low, s.turned, nothing, nothing, g.attn_proj_weight[n], accumulate, work)
    product_rounded(s.dx_low, f.attn_proj_t[n], Op.T, nothing, s.d_attn, work.wide)
    attention_backward_low(s.d_attn, a.attn[n], a.qkv[n], a.attn_lse[n], sequences, heads, s.d_qkv, work.attention)
    bias_backward_low(s.d_qkv, g.qkv_bias[n], accumulate)
    _weight_backward(a.normed1[n], s.d_qkv, s.turned, w.ln1_weight[n], w.ln1_bias[n], g.qkv_weight[n], accumulate, work)
    product_float(s.d_qkv, f.qkv_t[n], Op.T, s.dh, False, work.wide)
    below = g.mlp_proj_bias[n - 1] if n > 0 else s.d_bias
    layernorm_backward_low(
        s.dh, a.normed1[n], w.ln1_weight[n], a.rstd1[n], s.dx, s.dx_low,
        g.ln1_weight[n], g.ln1_bias[n], below, True, accumulate,
    )  # fmt: skip


@jit_kernel
def blocks_backward_low(
    weights: Weights,
    forms: Forms,
    acts: LowActivations,
    grads: Weights,
    scratch: LowScratch,
    work: Workspace,
    sequences: int,
    heads: int,
    accumulate: bool,
    ticket: AccumulationTicket,
) -> None:
    """Take ``scratch.dx`` to the gradient of the embeddings; write or add the gradients of the blocks' tensors.

    The bias of the last block's MLP belongs to `head_backward_low`, which comes before; that of any other is written
    by the block above it, in that block's part of the `ticket`.
    """
    part = -(-weights.wte.shape[0] // HEAD_SLICE)
    for n in range(weights.qkv_weight.shape[0] - 1, -1, -1):
        wait_for_predecessor(ticket, part)
        _mlp_backward(weights, forms, acts, grads, scratch, work, n, accumulate)
        mark_part_done(ticket, part)
        wait_for_predecessor(ticket, part + 1)
        _attention_backward(weights, forms, acts, grads, scratch, work, n, sequences, heads, accumulate)
        mark_part_done(ticket, part + 1)
        part += 2


@jit_kernel
def head_loss_low(
    weights: Weights, forms: Forms, x_final: Floats, targets: TokenIds, normed: Bits16, h: Bits16, rstd: Floats,
    logits: Floats, work: Workspace,
) -> float:  # fmt: skip
    """Return the sum of the cross-entropies of all rows, without a gradient; scratch as in `head_backward_low`."""
    rows, chunk = x_final.shape[0], logits.shape[0]
    layernorm_forward_low(x_final, weights.lnf_weight, weights.lnf_bias, rstd[:0], normed, h, rstd)
    total = 0.0
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        part = logits[: last - first]
        product_float(h[first:last], forms.wte_t, Op.T, part, False, work.wide)
        total += cross_entropy_forward(part, targets[first:last])
    return total


@jit_kernel
def head_backward_low(
    weights: Weights,
    forms: Forms,
    x_final: Floats,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: LowScratch,
    work: Workspace,
    accumulate: bool,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and leave the gradient of `x_final` in ``scratch.dx``.

    As `kernels.float32.gpt2.head_backward`; the gradient of the logits is rounded, transposed in slices of the
    vocabulary, and so never exists as a whole in that form. The gradient of the last block's MLP bias is written too.
    """
    s = scratch
    rows, chunk, slice_width = x_final.shape[0], s.logits.shape[0], s.d_logits_turned.shape[0]
    vocabulary = s.logits.shape[1]
    layernorm_forward_low(x_final, weights.lnf_weight, weights.lnf_bias, s.rstd[:0], s.normed, s.h, s.rstd)
    total = 0.0
    adds = accumulate
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        logits, d_logits, h = s.logits[: last - first], s.d_logits[: last - first], s.h[first:last]
        product_float(h, forms.wte_t, Op.T, logits, False, work.wide)
        total += cross_entropy_backward_low(logits, targets[first:last], scale, d_logits)
        product_float(d_logits, forms.wte, Op.N, s.dh[first:last], False, work.wide)
        for v0 in range(0, vocabulary, slice_width):
            v1 = min(v0 + slice_width, vocabulary)
            wait_for_predecessor(ticket, (v1 - 1) // HEAD_SLICE)
            turned = s.d_logits_turned[: v1 - v0, : last - first]
            transpose_bf16(d_logits[:, v0:v1], turned)
            product_outer(turned, h, grads.wte[v0:v1], adds, work.wide)
            if last == rows and v1 % HEAD_SLICE == 0 and v1 < vocabulary:
                mark_part_done(ticket, v0 // HEAD_SLICE)
        adds = True
    last_bias = grads.mlp_proj_bias[grads.mlp_proj_bias.shape[0] - 1]
    layernorm_backward_low(
        s.dh, s.normed, weights.lnf_weight, s.rstd, s.dx, s.dx_low,
        grads.lnf_weight, grads.lnf_bias, last_bias, False, accumulate,
    )  # fmt: skip
    mark_part_done(ticket, (vocabulary - 1) // HEAD_SLICE)
    return total
