"""GELU in GPT-2's tanh form, over 16-bit matrices: arithmetic in float32, one rounding for each element written.

The formula is that of `kernels.common.gelu`, with a power of two instead of an exponential: log2(e) is multiplied into
the constants of its argument, which takes fewer operations, with an error that is within the same bound.
"""

import numpy as np

from threadloom.kernels.common import Part
from threadloom.kernels.compiling import Floats, jit_always_inline, jit_inline_body, jit_kernel
from threadloom.kernels.simd import (
    GELU_CUBIC,
    GELU_CUBIC_LOG2,
    GELU_LINEAR,
    GELU_LINEAR_LOG2,
    Bits16,
    exp2_32,
    load16,
    store_result16,
)

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_CUBIC_SLOPE = np.float32(3.0) * GELU_CUBIC


@jit_always_inline
def _sigmoid(x: np.float32, squared: np.float32) -> np.float32:
    """Return GELU(x) / x."""
    return _ONE / (_ONE + exp2_32(-(x * (GELU_LINEAR_LOG2 + GELU_CUBIC_LOG2 * squared))))


@jit_always_inline
def _gelu_and_derivative(x: np.float32) -> tuple[np.float32, np.float32]:
    """Return GELU(x) and its derivative, as `kernels.common.gelu.gelu_and_derivative`."""
    squared = x * x
    s = _sigmoid(x, squared)
    y = x * s
    return y, s + y * (_ONE - s) * (GELU_LINEAR + _CUBIC_SLOPE * squared)


@jit_kernel
def gelu_forward(x: Bits16, out: Bits16) -> None:
    """Write GELU(x) to `out`; both (R, F). bfloat16's GEMM applies the GELU itself (`linear_gelu_forward`)."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        for j in range(row.shape[0]):
            x_j = load16(row, j)
            store_result16(target, j, x_j * _sigmoid(x_j, x_j * x_j))


@jit_inline_body
def gelu_backward(x: Bits16, d: Bits16, out: Bits16, d_bias: Floats, accumulate: bool) -> None:
    """Replace `d`, the gradient of GELU(x), by the gradient of `x`, and recompute GELU(x) into `out`; all (R, F).

    The column sums of the new `d` before rounding, which are the gradient of the bias in `x`, are written to `d_bias`
    (F,), or added to it when `accumulate`; they are not computed for a `d_bias` of length 0.
    """
    gelu_backward_columns(x, d, out, Part(0, x.shape[1]), d_bias, accumulate)


@jit_kernel
def gelu_backward_columns(x: Bits16, d: Bits16, out: Bits16, columns: Part, d_bias: Floats, accumulate: bool) -> None:
    """Compute some columns of `gelu_backward`."""
    first, last = columns
    if not d_bias.shape[0]:
        _without_bias(x, d, out, columns)
        return
    sums = d_bias[first:last]
    if not accumulate:
        sums.fill(_ZERO)
    for r in range(x.shape[0]):
        row, gradient, target = x[r][first:last], d[r][first:last], out[r][first:last]
        for j in range(row.shape[0]):
            y, derivative = _gelu_and_derivative(load16(row, j))
            store_result16(target, j, y)
            g = load16(gradient, j) * derivative
            store_result16(gradient, j, g)
            sums[j] += g


@jit_kernel
def _without_bias(x: Bits16, d: Bits16, out: Bits16, columns: Part) -> None:
    """Do the same without the column sums."""
    first, last = columns
    for r in range(x.shape[0]):
        row, gradient, target = x[r][first:last], d[r][first:last], out[r][first:last]
        for j in range(row.shape[0]):
            y, derivative = _gelu_and_derivative(load16(row, j))
            store_result16(target, j, y)
            store_result16(gradient, j, load16(gradient, j) * derivative)
