"""Generation with GPT-2, one token at a time, with a cache of keys and values."""

from typing import NamedTuple

from threadloom.kernels.common import Affine, Gpt2Constants, HeadCounts, Weights
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.float32.gelu import gelu_forward
from threadloom.kernels.float32.layernorm import layernorm_row
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


class DecodeScratch(NamedTuple):
    """Arrays of one step of generation, in addition to the cache."""

    x: Floats  # (C,) residual stream
    h: Floats  # (C,) a LayerNorm's output
    qkv: Floats  # (3C,)
    attn: Floats  # (C,)
    fc: Floats  # (F,)
    gelu: Floats  # (F,)
    scores: Floats  # (context,) scores of one head


@jit_kernel
def next_logits(weights: Weights, x: Floats, constants: Gpt2Constants, h: Floats, logits: Floats) -> None:
    """Write the logits (V,) that follow `x` (C,), a row that left the last block; `h` (C,) is scratch."""
    layernorm_row(x, Affine(weights.lnf_weight, weights.lnf_bias), h)
    write_logits(weights.wte, h, logits)


@jit_kernel
def decode_token(
    weights: Weights,
    cache: KVCache,
    token: int,
    position: int,
    constants: Gpt2Constants,
    scratch: DecodeScratch,
    logits: Floats,
) -> None:
    """Process `token` at `position`, add its keys and values to the cache, and write the next token's logits (V,).

    The earlier positions must be in the cache already; `position` must be in 0 .. context - 1.
    """
    w, s = weights, scratch
    heads = HeadCounts(constants.heads, constants.heads)
    copy_row(w.wte, token, s.x)
    add_to(s.x, w.wpe[position])
    for n in range(w.qkv_weight.shape[0]):
        layernorm_row(s.x, Affine(w.ln1_weight[n], w.ln1_bias[n]), s.h)
        start_product(w.qkv_bias[n], s.qkv)
        add_product(s.h, w.qkv_weight[n], s.qkv)
        append_to_cache(s.qkv, cache, n, position)
        attend(s.qkv, cache.keys[n], cache.values[n], position + 1, heads, s.scores, s.attn)
        add_to(s.x, w.attn_proj_bias[n])
        add_product(s.attn, w.attn_proj_weight[n], s.x)
        layernorm_row(s.x, Affine(w.ln2_weight[n], w.ln2_bias[n]), s.h)
        start_product(w.fc_bias[n], s.fc)
        add_product(s.h, w.fc_weight[n], s.fc)
        gelu_forward(s.fc.reshape(1, -1), s.gelu.reshape(1, -1))
        add_to(s.x, w.mlp_proj_bias[n])
        add_product(s.gelu, w.mlp_proj_weight[n], s.x)
    next_logits(w, s.x, constants, s.h, logits)
