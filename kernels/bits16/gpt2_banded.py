"""GPT-2 whose token embedding is of low rank by bands, in bfloat16: `kernels.bits16.gpt2` with another head.

Implements `kernels.common.protocol.ModelKernels` for `BandedWeights16`; `kernels.float32.gpt2_banded` tells of `wte`.
"""

from typing import NamedTuple

from threadloom.kernels.bits16 import gpt2
from threadloom.kernels.bits16.banded_head import BandedScratch, PackedFactors, banded_backward, banded_loss
from threadloom.kernels.bits16.gpt2 import norm_gradients
from threadloom.kernels.bits16.layernorm import NormalizedRows, layernorm_backward, layernorm_forward
from threadloom.kernels.bits16.residual import last_bias_beside_norm
from threadloom.kernels.bits16.tensors import (
    Activations16,
    PackedPair,
    PackedWeight,
    PackedWeights,
    Scratch16,
    Weights16,
)
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
from threadloom.kernels.compiling import Floats, TokenIds, jit_inline_body, jit_kernel


class BandedPackedWeights(NamedTuple):
    """`PackedWeights` of a model whose token embedding is of low rank by bands."""

    wte: PackedWeight  # read by the embedding: packed (V, C), computed from the factors
    qkv: PackedWeight
    qkv_t: PackedWeight
    attn_proj: PackedWeight
    attn_proj_t: PackedWeight
    fc: PackedWeight
    fc_t: PackedWeight
    mlp_proj: PackedWeight
    mlp_proj_t: PackedWeight
    qkv_a: PackedWeight
    qkv_a_t: PackedWeight
    qkv_b: PackedWeight
    qkv_b_t: PackedWeight
    attn_proj_a: PackedWeight
    attn_proj_a_t: PackedWeight
    attn_proj_b: PackedWeight
    attn_proj_b_t: PackedWeight
    fc_a: PackedWeight
    fc_a_t: PackedWeight
    fc_b: PackedWeight
    fc_b_t: PackedWeight
    mlp_proj_a: PackedWeight
    mlp_proj_a_t: PackedWeight
    mlp_proj_b: PackedWeight
    mlp_proj_b_t: PackedWeight
    wte_rows: PackedWeight  # flat: packed A_b (V_b, E_b), one after another
    wte_rows_t: PackedWeight
    wte_bases: PackedWeight  # flat: packed P_b (E_b, C)
    wte_bases_t: PackedWeight


class BandedWeights16(NamedTuple):
    """One version of the weights as the kernels of this module read it."""

    master: BandedWeights  # float32
    packed: BandedPackedWeights  # the matrices of `master`, rounded


def _without_factors(weights: BandedWeights16) -> Weights16:
    """Return the weights as the blocks read them; they do not read the packed transpose of `wte`, here `wte` itself."""
    packed = weights.packed
    blocks = packed[1 : len(PackedWeights._fields) - 1]
    return Weights16(plain_weights(weights.master), PackedWeights(packed.wte, packed.wte, *blocks))


def blocks_forward(weights: BandedWeights16, acts: Activations16, sequences: int, constants: BandedConstants) -> None:
    """Run all blocks, by the kernel of `kernels.bits16.gpt2`."""
    gpt2.blocks_forward(_without_factors(weights), acts, sequences, plain_constants(constants))


def blocks_backward(
    weights: BandedWeights16,
    acts: Activations16,
    grads: BandedWeights,
    scratch: Scratch16,
    sequences: int,
    constants: BandedConstants,
    ticket: AccumulationTicket,
) -> None:
    """Run all blocks backwards, by the kernel of `kernels.bits16.gpt2`."""
    plain = plain_constants(constants)
    gpt2.blocks_backward(_without_factors(weights), acts, plain_weights(grads), scratch, sequences, plain, ticket)


@jit_inline_body
def _factors(packed: BandedPackedWeights) -> PackedFactors:
    return PackedFactors(
        PackedPair(packed.wte_rows, packed.wte_rows_t), PackedPair(packed.wte_bases, packed.wte_bases_t)
    )


@jit_kernel
def head_loss(
    weights: BandedWeights16, acts: Activations16, targets: TokenIds, constants: BandedConstants, logits: Floats
) -> float:
    """Return the sum of the cross-entropies of all rows, without a gradient; ``acts.gelu`` is scratch.

    As `kernels.bits16.gpt2.head_loss`.
    """
    a, w = acts, weights.master
    kept = NormalizedRows(a.normed1[0], a.rstd1[0])
    layernorm_forward(a.x, Affine(w.lnf_weight, w.lnf_bias), a.rstd1[0, :0], kept, a.h)
    return banded_loss(
        a.h, _factors(weights.packed), constants.bands, targets, logits, a.gelu.reshape(a.gelu.size), a.thread.upcast
    )


@jit_kernel
def head_backward(
    weights: BandedWeights16,
    acts: Activations16,
    targets: TokenIds,
    scale: float,
    grads: BandedWeights,
    scratch: Scratch16,
    constants: BandedConstants,
    ticket: AccumulationTicket,
) -> float:
    """Return the unscaled sum of the cross-entropies, and write the gradient of ``acts.x`` to ``scratch.dx``.

    As `kernels.float32.gpt2_banded.head_backward`. The gradient of the last block's MLP bias is computed here, too.
    """
    w, g, s = weights.master, grads, scratch
    kept = NormalizedRows(s.normed, s.rstd)
    layernorm_forward(acts.x, Affine(w.lnf_weight, w.lnf_bias), s.rstd[:0], kept, s.h)
    s.dx.fill(0.0)  # `layernorm_backward` adds to it
    if not ticket.accumulate:
        g.wte.fill(0.0)
    u, du = s.gelu.reshape(s.gelu.size), s.d_fc.reshape(s.d_fc.size)
    space = BandedScratch(s.logits, s.d_logits, s.d_logits_t, u, du, s.transposed, s.thread.upcast)
    d_factors = BandFactors(g.wte_rows, g.wte_bases)
    loss = banded_backward(
        s.h, _factors(weights.packed), constants.bands, targets, scale, constants.loss, d_factors, s.dh, space, ticket
    )
    last_bias = last_bias_beside_norm(g.mlp_proj_bias, constants.dropout, acts.dropout_key)
    d_norm = norm_gradients(g.lnf_weight, g.lnf_bias, last_bias, s)
    layernorm_backward(s.dh, kept, w.lnf_weight, s.dx, s.dx16, d_norm, ticket.accumulate)
    mark_part_done(ticket, last_head_part(s.logits.shape[1]))
    return loss
