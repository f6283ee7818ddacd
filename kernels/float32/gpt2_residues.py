"""GPT-2 whose tokens are sums of residues, in float32: `kernels.float32.gpt2` with another head.

Implements `kernels.common.protocol.ModelKernels`: ``Weights.wte`` is the factors F (P, C) of the token embedding
(`kernels.common.residues`), and its parts are those of their rows.
"""

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
from threadloom.kernels.float32 import gpt2
from threadloom.kernels.float32.gpt2 import norm_gradients
from threadloom.kernels.float32.layernorm import RowStatistics, layernorm_backward, layernorm_forward, layernorm_row
from threadloom.kernels.float32.residue_head import residue_backward, residue_loss
from threadloom.kernels.float32.tensors import Activations, Scratch


def blocks_forward(weights: Weights, acts: Activations, sequences: int, constants: ResidueConstants) -> None:
    """Run all blocks, by the kernel of `kernels.float32.gpt2`."""
    gpt2.blocks_forward(weights, acts, sequences, plain_residue_constants(constants))


def blocks_backward(
    weights: Weights,
    acts: Activations,
    grads: Weights,
    scratch: Scratch,
    sequences: int,
    constants: ResidueConstants,
    ticket: AccumulationTicket,
) -> None:
    """Run all blocks backwards, by the kernel of `kernels.float32.gpt2`."""
    gpt2.blocks_backward(weights, acts, grads, scratch, sequences, plain_residue_constants(constants), ticket)


@jit_kernel
def head_loss(
    weights: Weights, acts: Activations, targets: TokenIds, constants: ResidueConstants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient; `logits` as in `residue_loss`."""
    x_final = acts.x[weights.qkv_weight.shape[0] % acts.x.shape[0]]
    affine = Affine(weights.lnf_weight, weights.lnf_bias)
    for r in range(x_final.shape[0]):
        layernorm_row(x_final[r], affine, acts.h[r])
    return residue_loss(acts.h, weights.wte, constants.residues, targets, logits)


@jit_kernel
def head_backward(
    weights: Weights,
    acts: Activations,
    targets: TokenIds,
    scale: float,
    grads: Weights,
    scratch: Scratch,
    constants: ResidueConstants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x[L]`` to ``scratch.dx``.

    As `kernels.float32.gpt2.head_backward`.
    """
    w, s, x_final = weights, scratch, acts.x[acts.x.shape[0] - 1]
    statistics = RowStatistics(s.lnf_mean, s.lnf_rstd)
    layernorm_forward(x_final, Affine(w.lnf_weight, w.lnf_bias), s.h, statistics)
    s.dx.fill(0.0)  # `layernorm_backward` adds to it
    residues, terms = constants.residues, constants.loss
    loss = residue_backward(s.h, w.wte, residues, targets, scale, terms, grads.wte, s.dh, s.logits, ticket)
    d_affine = norm_gradients(grads.lnf_weight, grads.lnf_bias, s)
    layernorm_backward(s.dh, x_final, w.lnf_weight, statistics, s.dx, d_affine, ticket.accumulate)
    mark_part_done(ticket, last_head_part(w.wte.shape[0]))
    return loss
