"""Generation with the Llama family, one token at a time, with a cache of keys and values, by a team of threads.

`kernels.float32.decode` describes how the members of a team divide a token. A cached key has the rotary position at
which it was computed. `kernels.float32.one_token.prefill_cache` fills the cache from the activations of
`kernels.float32.llama.blocks_forward`.
"""

from typing import NamedTuple

from threadloom.kernels.common import (
    NO_BORDERS,
    LlamaConstants,
    LlamaWeights,
    Team,
    meet_soon,
    prepare_heads_forward,
    swiglu_forward,
)
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.float32.one_token import (
    KVCache,
    add_product,
    attend,
    copy,
    copy_row,
    write_logits,
    write_product,
)
from threadloom.kernels.float32.rmsnorm import rmsnorm_row


class LlamaDecodeScratch(NamedTuple):
    """Arrays of one step of generation, in addition to the cache: those that the members share, and a member's own."""

    x: Floats  # (C,) residual stream; shared
    qkv: Floats  # ((H + 2K) D,) queries, keys and values as they are projected; shared
    attn: Floats  # (H D,) shared
    gate_up: Floats  # (1, 2F) shared
    h: Floats  # (C,) an RMS norm's output
    heads: Floats  # (1, (H + 2K) D) queries, keys and values, with their norms and positions
    qk_raw: Floats  # (1, (H + K) D) queries and keys before their norm; 0 columns without one
    gated: Floats  # (1, F)
    scores: Floats  # (context,) scores of one head


@jit_kernel
def next_logits(
    weights: LlamaWeights, x: Floats, constants: LlamaConstants, h: Floats, logits: Floats, team: Team
) -> None:
    """Write the logits (V,) that follow `x` (C,), a row that left the last block; `h` (C,) is scratch of the member.

    On return the logits are complete.
    """
    rmsnorm_row(x, weights.normf_weight, constants.epsilon, h)
    write_logits(weights.head, h, logits, team)
    meet_soon(team)


@jit_kernel
def _prepare_heads(
    w: LlamaWeights, constants: LlamaConstants, position: int, n: int, scratch: LlamaDecodeScratch
) -> None:
    """Copy ``scratch.qkv`` of block `n` to ``scratch.heads``, with norms and positions of queries and keys."""
    s, c, here = scratch, constants, slice(position, position + 1)
    copy(s.qkv, s.heads[0])
    at_position = LlamaConstants(c.heads, c.epsilon, c.cos[here], c.sin[here], c.rotary, c.lora, c.loss, c.dropout)
    prepare_heads_forward(s.heads, s.qk_raw, w, at_position, n, 1, NO_BORDERS)


@jit_kernel
def decode_token(
    weights: LlamaWeights,
    cache: KVCache,
    token: int,
    position: int,
    constants: LlamaConstants,
    scratch: LlamaDecodeScratch,
    logits: Floats,
    team: Team,
) -> None:
    """Process `token` at `position`, add its keys and values to the cache, and write the next token's logits (V,).

    The earlier positions must be in the cache already; `position` must be in 0 .. context - 1.
    """
    w, s, c = weights, scratch, constants
    if team.member == 0:
        copy_row(w.wte, token, s.x)
    meet_soon(team)  # the embedding
    for n in range(w.qkv_weight.shape[0]):
        rmsnorm_row(s.x, w.norm1_weight[n], c.epsilon, s.h)
        write_product(s.h, w.qkv_weight[n], w.qkv_bias[n], s.qkv, team)
        meet_soon(team)  # all of qkv; nobody reads x any more
        _prepare_heads(w, c, position, n, s)
        attend(s.heads[0], cache, n, position, c.heads, s.scores, s.attn, team)
        meet_soon(team)  # all heads
        add_product(s.attn, w.attn_proj_weight[n], w.attn_proj_bias[n], s.x, team)
        meet_soon(team)  # all of x
        rmsnorm_row(s.x, w.norm2_weight[n], c.epsilon, s.h)
        write_product(s.h, w.gate_up_weight[n], w.gate_up_bias[n], s.gate_up[0], team)
        meet_soon(team)  # all of gate and up; nobody reads x any more
        swiglu_forward(s.gate_up, s.gated)
        add_product(s.gated[0], w.down_weight[n], w.down_bias[n], s.x, team)
        meet_soon(team)  # all of x
    next_logits(w, s.x, c, s.h, logits, team)
