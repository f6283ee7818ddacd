"""Generation with GPT-2, one token at a time, with a cache of keys and values, by a team of threads.

Every member calls each kernel. It computes its columns of the products and its heads of attention in arrays that the
members share, and everything else in full, in arrays of its own. The members meet before a step reads what others
wrote. The bits are the same in a team of any size, one thread included.
"""

from typing import NamedTuple

from threadloom.kernels.common import Affine, Gpt2Constants, HeadCounts, Team, Weights, meet_soon
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.float32.gelu import gelu_forward
from threadloom.kernels.float32.layernorm import layernorm_row
from threadloom.kernels.float32.one_token import (
    KVCache,
    add_product,
    add_to,
    attend,
    copy_row,
    write_logits,
    write_product,
)


class DecodeScratch(NamedTuple):
    """Arrays of one step of generation, in addition to the cache: those that the members share, and a member's own."""

    x: Floats  # (C,) residual stream; shared
    qkv: Floats  # (3C,) shared
    attn: Floats  # (C,) shared
    fc: Floats  # (F,) shared
    h: Floats  # (C,) a LayerNorm's output
    gelu: Floats  # (F,)
    scores: Floats  # (context,) scores of one head


@jit_kernel
def next_logits(weights: Weights, x: Floats, constants: Gpt2Constants, h: Floats, logits: Floats, team: Team) -> None:
    """Write the logits (V,) that follow `x` (C,), a row that left the last block; `h` (C,) is scratch of the member.

    On return the logits are complete.
    """
    layernorm_row(x, Affine(weights.lnf_weight, weights.lnf_bias), h)
    write_logits(weights.wte, h, logits, team)
    meet_soon(team)


@jit_kernel
def decode_token(
    weights: Weights,
    cache: KVCache,
    token: int,
    position: int,
    constants: Gpt2Constants,
    scratch: DecodeScratch,
    logits: Floats,
    team: Team,
) -> None:
    """Process `token` at `position`, add its keys and values to the cache, and write the next token's logits (V,).

    The earlier positions must be in the cache already; `position` must be in 0 .. context - 1.
    """
    w, s = weights, scratch
    heads = HeadCounts(constants.heads, constants.heads)
    if team.member == 0:
        copy_row(w.wte, token, s.x)
        add_to(s.x, w.wpe[position])
    meet_soon(team)  # the embedding
    for n in range(w.qkv_weight.shape[0]):
        layernorm_row(s.x, Affine(w.ln1_weight[n], w.ln1_bias[n]), s.h)
        write_product(s.h, w.qkv_weight[n], w.qkv_bias[n], s.qkv, team)
        meet_soon(team)  # all heads of qkv; nobody reads x any more
        attend(s.qkv, cache, n, position, heads, s.scores, s.attn, team)
        meet_soon(team)  # all heads
        add_product(s.attn, w.attn_proj_weight[n], w.attn_proj_bias[n], s.x, team)
        meet_soon(team)  # all of x
        layernorm_row(s.x, Affine(w.ln2_weight[n], w.ln2_bias[n]), s.h)
        write_product(s.h, w.fc_weight[n], w.fc_bias[n], s.fc, team)
        meet_soon(team)  # all of fc; nobody reads x any more
        gelu_forward(s.fc.reshape(1, -1), s.gelu.reshape(1, -1))
        add_product(s.gelu, w.mlp_proj_weight[n], w.mlp_proj_bias[n], s.x, team)
        meet_soon(team)  # all of x
    next_logits(w, s.x, constants, s.h, logits, team)
