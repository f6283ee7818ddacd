"""GPT-2 whose token embedding is of low rank by bands, in float32: `kernels.float32.gpt2` with another head.

Implements `kernels.common.protocol.ModelKernels` for `BandedWeights`: `wte` is computed from the factors and read by
the embedding alone. Its gradient is that of the embedding alone; `head_backward` clears it unless it adds.
"""

from threadloom.kernels.common import (
    AccumulationTicket,
    Affine,
    BandedConstants,
    BandedWeights,
    BandFactors,
    last_head_part,
    mark_part_done,
    plain_constants,
    plain_weights,
)
from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.float32 import gpt2
from threadloom.kernels.float32.banded_head import banded_backward, banded_loss
from threadloom.kernels.float32.gpt2 import norm_gradients
from threadloom.kernels.float32.layernorm import RowStatistics, layernorm_backward, layernorm_forward, layernorm_row
from threadloom.kernels.float32.tensors import Activations, Scratch


def blocks_forward(weights: BandedWeights, acts: Activations, sequences: int, constants: BandedConstants) -> None:
    """Run all blocks, by the kernel of `kernels.float32.gpt2`."""
    gpt2.blocks_forward(plain_weights(weights), acts, sequences, plain_constants(constants))


def blocks_backward(
    weights: BandedWeights,
    acts: Activations,
    grads: BandedWeights,
    scratch: Scratch,
    sequences: int,
    constants: BandedConstants,
    ticket: AccumulationTicket,
) -> None:
    """Run all blocks backwards, by the kernel of `kernels.float32.gpt2`."""
    plain = plain_constants(constants)
    gpt2.blocks_backward(plain_weights(weights), acts, plain_weights(grads), scratch, sequences, plain, ticket)


@jit_kernel
def head_loss(
    weights: BandedWeights, acts: Activations, targets: TokenIds, constants: BandedConstants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient; ``acts.gelu`` is scratch."""
    w, x_final = weights, acts.x[weights.qkv_weight.shape[0] % acts.x.shape[0]]
    affine = Affine(w.lnf_weight, w.lnf_bias)
    for r in range(x_final.shape[0]):
        layernorm_row(x_final[r], affine, acts.h[r])
    factors = BandFactors(w.wte_rows, w.wte_bases)
    return banded_loss(acts.h, factors, constants.bands, targets, logits, acts.gelu.reshape(acts.gelu.size))


@jit_kernel
def head_backward(
    weights: BandedWeights,
    acts: Activations,
    targets: TokenIds,
    scale: float,
    grads: BandedWeights,
    scratch: Scratch,
    constants: BandedConstants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x[L]`` to ``scratch.dx``.

    As `kernels.float32.gpt2.head_backward`. The inner products of the bands are in scratch of the MLP, which has 4 C
    elements per row: the ranks together may not be more.
    """
    w, g, s, x_final = weights, grads, scratch, acts.x[acts.x.shape[0] - 1]
    statistics = RowStatistics(s.lnf_mean, s.lnf_rstd)
    layernorm_forward(x_final, Affine(w.lnf_weight, w.lnf_bias), s.h, statistics)
    s.dx.fill(0.0)  # `layernorm_backward` adds to it
    if not ticket.accumulate:
        g.wte.fill(0.0)
    u, du = s.gelu.reshape(s.gelu.size), s.d_fc.reshape(s.d_fc.size)
    factors, d_factors = BandFactors(w.wte_rows, w.wte_bases), BandFactors(g.wte_rows, g.wte_bases)
    bands, terms = constants.bands, constants.loss
    loss = banded_backward(s.h, factors, bands, targets, scale, terms, d_factors, s.dh, s.logits, u, du, ticket)
    d_affine = norm_gradients(g.lnf_weight, g.lnf_bias, s)
    layernorm_backward(s.dh, x_final, w.lnf_weight, statistics, s.dx, d_affine, ticket.accumulate)
    mark_part_done(ticket, last_head_part(w.wte.shape[0]))
    return loss
