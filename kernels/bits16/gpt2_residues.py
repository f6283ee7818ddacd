"""GPT-2 whose tokens are sums of residues, in 16 bits: `kernels.bits16.gpt2` with another head.

Implements `kernels.common.protocol.ModelKernels`; `kernels.float32.gpt2_residues` tells of ``wte``.
"""

from threadloom.kernels.bits16 import gpt2
from threadloom.kernels.bits16.gpt2 import norm_gradients
from threadloom.kernels.bits16.head import ProjectionScratch
from threadloom.kernels.bits16.layernorm import NormalizedRows, layernorm_backward, layernorm_forward
from threadloom.kernels.bits16.residual import last_bias_beside_norm
from threadloom.kernels.bits16.residue_head import residue_backward, residue_loss
from threadloom.kernels.bits16.tensors import Activations16, PackedPair, Scratch16, Weights16
from threadloom.kernels.common import (
    AccumulationTicket,
    Affine,
    ResidueConstants,
    Weights,
    last_head_part,
    mark_part_done,
    plain_residue_constants,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel


def blocks_forward(weights: Weights16, acts: Activations16, sequences: int, constants: ResidueConstants) -> None:
    """Run all blocks, by the kernel of `kernels.bits16.gpt2`."""
    gpt2.blocks_forward(weights, acts, sequences, plain_residue_constants(constants))


def blocks_backward(
    weights: Weights16,
    acts: Activations16,
    grads: Weights,
    scratch: Scratch16,
    sequences: int,
    constants: ResidueConstants,
    ticket: AccumulationTicket,
) -> None:
    """Run all blocks backwards, by the kernel of `kernels.bits16.gpt2`."""
    gpt2.blocks_backward(weights, acts, grads, scratch, sequences, plain_residue_constants(constants), ticket)


@jit_kernel
def head_loss(
    weights: Weights16, acts: Activations16, targets: TokenIds, constants: ResidueConstants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient; `logits` as in `residue_loss`.

    As `kernels.bits16.gpt2.head_loss`.
    """
    a, w = acts, weights.master
    kept = NormalizedRows(a.normed1[0], a.rstd1[0])
    layernorm_forward(a.x, Affine(w.lnf_weight, w.lnf_bias), a.rstd1[0, :0], kept, a.h)
    return residue_loss(a.h, weights.packed.wte_t, constants.residues, targets, logits, a.thread.upcast)


@jit_kernel
def head_backward(
    weights: Weights16,
    acts: Activations16,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: Scratch16,
    constants: ResidueConstants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x`` to ``scratch.dx``.

    As `kernels.bits16.gpt2.head_backward`.
    """
    w, p, s, residues = weights.master, weights.packed, scratch, constants.residues
    kept = NormalizedRows(s.normed, s.rstd)
    layernorm_forward(acts.x, Affine(w.lnf_weight, w.lnf_bias), s.rstd[:0], kept, s.h)
    s.dx.fill(0.0)  # `layernorm_backward` adds to it
    space = ProjectionScratch(s.logits, s.d_logits, s.d_logits_t, s.thread.upcast)
    factors, terms = PackedPair(p.wte, p.wte_t), constants.loss
    loss = residue_backward(s.h, factors, residues, targets, scale, terms, grads.wte, s.dh, space, ticket)
    last_bias = last_bias_beside_norm(grads.mlp_proj_bias, constants.dropout, acts.dropout_key)
    d_norm = norm_gradients(grads.lnf_weight, grads.lnf_bias, last_bias, s)
    layernorm_backward(s.dh, kept, w.lnf_weight, s.dx, s.dx16, d_norm, ticket.accumulate)
    mark_part_done(ticket, last_head_part(s.d_logits.shape[1]))
    return loss
