"""Causal self-attention on 16-bit arrays: `kernels.float32.attention` with operands of bfloat16 or float16.

After FlashAttention (Dao et al., 2022; 2023, algorithms 1 and 2), with its rounding: scores, softmax, statistics and
all sums are float32; probabilities and the gradients of the scores are rounded to the 16-bit format before they are
multiplied; results are rounded once. The arrays hold bits, and the integer dtype is the format: uint16 is bfloat16,
int16 is float16 (`kernels.simd.scalar`).

bfloat16 has GEMMs of small matrices for this purpose (`kernels.bits16.attention.products`), float16 uses float32's
(`kernels.bits16.attention.fp16`).

Both passes are behind addresses, so that the kernels of all architectures call one compiled copy.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import DTypeLike

from threadloom.kernels.bits16.attention.backward import backward_bf16
from threadloom.kernels.bits16.attention.forward import forward_bf16
from threadloom.kernels.bits16.attention.fp16 import backward_fp16, forward_fp16
from threadloom.kernels.bits16.attention.numpy_fallback import backward_numpy, forward_numpy
from threadloom.kernels.bits16.attention.scratch import AttentionScratch, attention_example
from threadloom.kernels.common import AttentionActivations, HeadCounts, Part
from threadloom.kernels.compiling import Entry, jit_inline_body, jit_strict_fp, overload_inline, type_of
from threadloom.kernels.simd import Bits16


@overload_inline(forward_numpy)
def _forward(acts: Any, sequences: Any, heads: Any, part: Any, scratch: Any) -> Any:
    kernel: Any = forward_bf16 if acts[0].dtype == types.uint16 else forward_fp16

    def run(acts: Any, sequences: Any, heads: Any, part: Any, scratch: Any) -> None:
        kernel(acts, sequences, heads, part, scratch)

    return run


@overload_inline(backward_numpy)
def _backward(d_out: Any, acts: Any, sequences: Any, heads: Any, part: Any, d_qkv: Any, scratch: Any) -> Any:
    kernel: Any = backward_bf16 if d_out.dtype == types.uint16 else backward_fp16

    def run(d_out: Any, acts: Any, sequences: Any, heads: Any, part: Any, d_qkv: Any, scratch: Any) -> None:
        kernel(d_out, acts, sequences, heads, part, d_qkv, scratch)

    return run


class _ForwardArgs(NamedTuple):
    """Arguments of `attention_heads_forward`."""

    acts: AttentionActivations
    sequences: int
    heads: HeadCounts
    part: Part
    scratch: AttentionScratch


class _BackwardArgs(NamedTuple):
    """Arguments of `attention_heads_backward`."""

    d_out: Bits16
    acts: AttentionActivations
    sequences: int
    heads: HeadCounts
    part: Part
    d_qkv: Bits16
    scratch: AttentionScratch


@jit_strict_fp
def _run_forward(p: _ForwardArgs) -> None:
    forward_numpy(p.acts, p.sequences, p.heads, p.part, p.scratch)  # compiled code calls the format's kernel instead


@jit_strict_fp
def _run_backward(p: _BackwardArgs) -> None:
    backward_numpy(p.d_out, p.acts, p.sequences, p.heads, p.part, p.d_qkv, p.scratch)  # likewise


def _types_of(dtype: DTypeLike) -> tuple[Any, Any]:
    """Return the types of the arguments of both passes, in the format of a dtype."""
    rows, heads, part, scratch = np.zeros((1, 1), dtype), HeadCounts(1, 1), Part(0, 1), attention_example()
    acts = AttentionActivations(rows, rows, np.zeros((1, 1, 1), np.float32))
    forward = _ForwardArgs(acts, 1, heads, part, scratch)
    return type_of(forward), type_of(_BackwardArgs(rows, acts, 1, heads, part, rows, scratch))


_TYPES = {dtype: _types_of(dtype) for dtype in (np.uint16, np.int16)}
_FORWARD = Entry("threadloom_attention16_forward", _run_forward, *(t[0] for t in _TYPES.values()), prepares_itself=True)
_BACKWARD = Entry(
    "threadloom_attention16_backward", _run_backward, *(t[1] for t in _TYPES.values()), prepares_itself=True
)
_call_forward, _call_backward = _FORWARD.call, _BACKWARD.call


@jit_inline_body
def attention_heads_forward(
    acts: AttentionActivations, sequences: int, heads: HeadCounts, part: Part, scratch: AttentionScratch
) -> None:
    """Compute the columns of ``out`` and the rows of ``lse`` of the query heads in `part`, whole groups, from ``qkv``.

    ``out = softmax(q k.T / sqrt(D) + mask) v`` for each query head (Vaswani et al., 2017, equation 1), with the keys
    and values of its group. qkv and out are bits of one 16-bit format.
    """
    _call_forward(_ForwardArgs(acts, sequences, heads, part, scratch))


@jit_inline_body
def attention_forward(acts: AttentionActivations, sequences: int, heads: HeadCounts, scratch: AttentionScratch) -> None:
    """Compute ``out`` and ``lse`` of `acts` from its ``qkv``: `attention_heads_forward` for all heads."""
    attention_heads_forward(acts, sequences, heads, Part(0, heads.query), scratch)


@jit_inline_body
def attention_heads_backward(
    d_out: Bits16,
    acts: AttentionActivations,
    sequences: int,
    heads: HeadCounts,
    part: Part,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    """Write the columns of the query heads in `part`, whole groups, of the gradient of ``qkv`` (R, (H + 2K) D).

    They are written to `d_qkv`, given `d_out` (R, H D), the gradient of the output, and so are those of the groups'
    keys and values. `acts` are those of the forward pass. The gradients of keys and values are float32 sums over the
    query heads of a group, in ascending order, and are rounded once. All but ``lse`` (float32) are bits of one 16-bit
    format.
    """
    _call_backward(_BackwardArgs(d_out, acts, sequences, heads, part, d_qkv, scratch))


@jit_inline_body
def attention_backward(
    d_out: Bits16,
    acts: AttentionActivations,
    sequences: int,
    heads: HeadCounts,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    """Write the gradient of ``qkv`` to `d_qkv`, for all heads: `attention_heads_backward`."""
    attention_heads_backward(d_out, acts, sequences, heads, Part(0, heads.query), d_qkv, scratch)
