"""GELU in GPT-2's tanh form, over 16-bit matrices: arithmetic in float32, one rounding for each element written.

`kernels.common.gelu` has the formula.
"""

import numpy as np

from threadloom.kernels.common import gelu, gelu_and_derivative
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.simd import Bits16, load16, store16

_ZERO = np.float32(0.0)


@jit_kernel
def gelu_forward(x: Bits16, out: Bits16) -> None:
    """Write GELU(x) to `out`; both (R, F). bfloat16's GEMM applies the GELU itself (`linear_gelu_forward`)."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        for j in range(row.shape[0]):
            store16(target, j, gelu(load16(row, j)))


@jit_kernel
def gelu_backward(x: Bits16, d: Bits16, out: Bits16, d_bias: Floats, accumulate: bool) -> None:
    """Replace `d`, the gradient of GELU(x), by the gradient of `x`, and recompute GELU(x) into `out`; all (R, F).

    The column sums of the new `d` before rounding, which are the gradient of the bias in `x`, are written to `d_bias`
    (F,), or added to it when `accumulate`; they are not computed for a `d_bias` of length 0.
    """
    if not d_bias.shape[0]:
        _without_bias(x, d, out)
        return
    if not accumulate:
        d_bias.fill(_ZERO)
    for r in range(x.shape[0]):
        row, gradient, target = x[r], d[r], out[r]
        for j in range(row.shape[0]):
            y, derivative = gelu_and_derivative(load16(row, j))
            store16(target, j, y)
            g = load16(gradient, j) * derivative
            store16(gradient, j, g)
            d_bias[j] += g


@jit_kernel
def _without_bias(x: Bits16, d: Bits16, out: Bits16) -> None:
    """Do the same without the column sums."""
    for r in range(x.shape[0]):
        row, gradient, target = x[r], d[r], out[r]
        for j in range(row.shape[0]):
            y, derivative = gelu_and_derivative(load16(row, j))
            store16(target, j, y)
            store16(gradient, j, load16(gradient, j) * derivative)
