"""Generation with the Llama family, one token at a time, with a cache of keys and values.

A cached key has the rotary position at which it was computed. `kernels.float32.one_token.prefill_cache` fills the cache
from the activations of `kernels.float32.llama.blocks_forward`.
"""

from typing import NamedTuple

from threadloom.kernels.common import (
    NO_BORDERS,
    LlamaConstants,
    LlamaWeights,
    prepare_heads_forward,
    swiglu_forward,
)
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.float32.one_token import (
    KVCache,
    add_product,
    add_to,
    append_to_cache,
    attend,
    copy_row,
    start_product,
    write_logits,
)
from threadloom.kernels.float32.rmsnorm import rmsnorm_row


class LlamaDecodeScratch(NamedTuple):
    """Arrays of one step of generation, in addition to the cache."""

    x: Floats  # (C,) residual stream
    h: Floats  # (C,) an RMS norm's output
    qkv: Floats  # (1, (H + 2K) D)
    qk_raw: Floats  # (1, (H + K) D) queries and keys before their norm; 0 columns without one
    attn: Floats  # (H D,)
    gate_up: Floats  # (1, 2F)
    gated: Floats  # (1, F)
    scores: Floats  # (context,) scores of one head


@jit_kernel
def next_logits(weights: LlamaWeights, x: Floats, constants: LlamaConstants, h: Floats, logits: Floats) -> None:
    """Write the logits (V,) that follow `x` (C,), a row that left the last block; `h` (C,) is scratch."""
    rmsnorm_row(x, weights.normf_weight, constants.epsilon, h)
    write_logits(weights.head, h, logits)


@jit_kernel
def _attention_input(
    w: LlamaWeights, constants: LlamaConstants, position: int, n: int, scratch: LlamaDecodeScratch
) -> None:
    """Compute queries, keys and values of block `n` from the output of its first norm, ``scratch.h``."""
    s, c, here = scratch, constants, slice(position, position + 1)
    start_product(w.qkv_bias[n], s.qkv[0])
    add_product(s.h, w.qkv_weight[n], s.qkv[0])
    at_position = LlamaConstants(c.heads, c.epsilon, c.cos[here], c.sin[here], c.rotary, c.lora, c.loss, c.dropout)
    prepare_heads_forward(s.qkv, s.qk_raw, w, at_position, n, 1, NO_BORDERS)


@jit_kernel
def decode_token(
    weights: LlamaWeights,
    cache: KVCache,
    token: int,
    position: int,
    constants: LlamaConstants,
    scratch: LlamaDecodeScratch,
    logits: Floats,
) -> None:
    """Process `token` at `position`, add its keys and values to the cache, and write the next token's logits (V,).

    The earlier positions must be in the cache already; `position` must be in 0 .. context - 1.
    """
    w, s, c = weights, scratch, constants
    copy_row(w.wte, token, s.x)
    for n in range(w.qkv_weight.shape[0]):
        rmsnorm_row(s.x, w.norm1_weight[n], c.epsilon, s.h)
        _attention_input(w, c, position, n, s)
        append_to_cache(s.qkv[0], cache, n, position)
        attend(s.qkv[0], cache.keys[n], cache.values[n], position + 1, c.heads, s.scores, s.attn)
        add_to(s.x, w.attn_proj_bias[n])
        add_product(s.attn, w.attn_proj_weight[n], s.x)
        rmsnorm_row(s.x, w.norm2_weight[n], c.epsilon, s.h)
        start_product(w.gate_up_bias[n], s.gate_up[0])
        add_product(s.h, w.gate_up_weight[n], s.gate_up[0])
        swiglu_forward(s.gate_up, s.gated)
        add_to(s.x, w.down_bias[n])
        add_product(s.gated[0], w.down_weight[n], s.x)
    next_logits(w, s.x, c, s.h, logits)
