"""The named tensors of training in 16 bits: compute forms of the weights, activations, and backward's scratch.

The shape legend is that of `kernels.common.tensors`. ``Bits16`` arrays hold the bits of bfloat16 (uint16) or float16
(int16) numbers; everything that sums, normalises or measures is float32.
"""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from threadloom.kernels.bits16.attention import AttentionScratch
from threadloom.kernels.compiling import Floats
from threadloom.kernels.simd import Bits16

Form = NDArray[Any]
"""A weight as products take it: packed bfloat16 (uint32 words), or float16 as it lies in its float32 master (int16)."""


class Forms(NamedTuple):
    """What products read of one version of the weights; the vectors are read from the float32 master.

    A field holds a weight W (I, O) as the second operand of ``x @ W``, its ``_t`` twin as that of ``dy @ W.T``. For
    bfloat16 both are packed (`kernels.matmul.pack`); float16 has one form, which both fields name.
    """

    wte: Form  # dlogits @ wte: packed (V, C)
    wte_t: Form  # h @ wte.T: packed (C, V)
    qkv: Form  # (L, form of (C, 3C))
    qkv_t: Form
    attn_proj: Form  # (L, form of (C, C))
    attn_proj_t: Form
    fc: Form  # (L, form of (C, F))
    fc_t: Form
    mlp_proj: Form  # (L, form of (F, C))
    mlp_proj_t: Form


class Wide(NamedTuple):
    """Scratch of products that widen their operands to float32, float16's; all of length 0 where none is needed."""

    a: Floats  # flat: sizes from `kernels.matmul.fp16`
    b: Floats
    sums: Floats


class Workspace(NamedTuple):
    """What kernels write on the way, for one thread; it tells nothing afterwards."""

    attention: AttentionScratch
    wide: Wide


class LowActivations(NamedTuple):
    """What forward keeps of one micro-batch for backward, and forward's own scratch (the last two).

    The residual stream exists once and is not kept: backward needs each LayerNorm's normalised rows, from which the
    output follows, and not what went into it.
    """

    x: Floats  # (R, C) residual stream: the embeddings at first, at last what leaves the last block
    normed1: Bits16  # (L, R, C) rows of the first LayerNorm before weight and bias
    rstd1: Floats  # (L, R)
    qkv: Bits16  # (L, R, 3C)
    attn: Bits16  # (L, R, C)
    attn_lse: Floats  # (L, B, H, T)
    normed2: Bits16  # (L, R, C)
    rstd2: Floats  # (L, R)
    fc: Bits16  # (L, R, F) before the GELU
    h: Bits16  # (R, C) scratch: a LayerNorm's output
    gelu: Bits16  # (R, F) scratch: the GELU's output


class LowScratch(NamedTuple):
    """What backward needs beside the activations; it belongs to the lane."""

    dx: Floats  # (R, C) gradient of the residual stream
    dx_low: Bits16  # (R, C) the same, rounded: what the products of a block read
    dh: Floats  # (R, C) gradient of a LayerNorm's output
    d_attn: Bits16  # (R, C)
    d_qkv: Bits16  # (R, 3C)
    d_fc: Bits16  # (R, F)
    gelu: Bits16  # (R, F) the GELU's output, made again
    turned: Bits16  # (F, R) a transposed operand
    logits: Floats  # (rows of one chunk, V)
    d_logits: Bits16  # (rows of one chunk, V)
    d_logits_turned: Bits16  # (columns of one slice, rows of one chunk)
    h: Bits16  # (R, C) the last LayerNorm's output
    normed: Bits16  # (R, C) the same before weight and bias
    rstd: Floats  # (R,)
    d_bias: Floats  # (C,) takes the gradient of a bias that no layer has
