"""Causal self-attention on 16-bit arrays: `kernels.float32.attention` with operands of bfloat16 or float16.

After FlashAttention (Dao et al., 2022; 2023, algorithms 1 and 2), with its rounding: scores, softmax, statistics and
all sums are float32; probabilities and the gradients of the scores are rounded to the 16-bit format before they are
multiplied; results are rounded once. The arrays hold bits, and the integer dtype is the format: uint16 is bfloat16,
int16 is float16 (`kernels.simd.scalar`).

bfloat16 has GEMMs of small matrices for this purpose (`kernels.bits16.attention.products`), float16 uses float32's
(`kernels.bits16.attention.fp16`).
"""

from typing import Any

from numba import types
from numba.extending import overload

from threadloom.kernels.bits16.attention.backward import backward_bf16
from threadloom.kernels.bits16.attention.forward import forward_bf16
from threadloom.kernels.bits16.attention.fp16 import backward_fp16, forward_fp16
from threadloom.kernels.bits16.attention.numpy_fallback import backward_numpy, forward_numpy
from threadloom.kernels.bits16.attention.scratch import AttentionScratch
from threadloom.kernels.compiling import Floats, jit_inline_body
from threadloom.kernels.simd import Bits16


@overload(forward_numpy, inline="always")
def _forward(qkv: Any, sequences: Any, heads: Any, out: Any, lse: Any, scratch: Any) -> Any:
    kernel: Any = forward_bf16 if qkv.dtype == types.uint16 else forward_fp16

    def run(qkv: Any, sequences: Any, heads: Any, out: Any, lse: Any, scratch: Any) -> None:
        kernel(qkv, sequences, heads, out, lse, scratch)

    return run


@overload(backward_numpy, inline="always")
def _backward(d_out: Any, out: Any, qkv: Any, lse: Any, sequences: Any, heads: Any, d_qkv: Any, scratch: Any) -> Any:
    kernel: Any = backward_bf16 if qkv.dtype == types.uint16 else backward_fp16

    def run(d_out: Any, out: Any, qkv: Any, lse: Any, sequences: Any, heads: Any, d_qkv: Any, scratch: Any) -> None:
        kernel(d_out, out, qkv, lse, sequences, heads, d_qkv, scratch)

    return run


@jit_inline_body
def attention_forward(
    qkv: Bits16, sequences: int, heads: int, out: Bits16, lse: Floats, scratch: AttentionScratch
) -> None:
    """Write the heads' outputs to `out` (R, C), and the float32 log-sum-exp of each row of scores to `lse` (B, H, T).

    ``out = softmax(q k.T / sqrt(D) + mask) v`` for each head: qkv (R, 3C) holds q, k and v side by side, each of them
    the heads side by side (Vaswani et al., 2017, equation 1). qkv and out are bits of one 16-bit format.
    """
    forward_numpy(qkv, sequences, heads, out, lse, scratch)  # compiled code calls the kernel of the format instead


@jit_inline_body
def attention_backward(
    d_out: Bits16,
    out: Bits16,
    qkv: Bits16,
    lse: Floats,
    sequences: int,
    heads: int,
    d_qkv: Bits16,
    scratch: AttentionScratch,
) -> None:
    """Write the gradient of `qkv` (R, 3C) to `d_qkv`, given `d_out` (R, C), that of the output, and forward's results.

    All but `lse` (float32) are bits of one 16-bit format.
    """
    backward_numpy(d_out, out, qkv, lse, sequences, heads, d_qkv, scratch)  # as in `attention_forward`
