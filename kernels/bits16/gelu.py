"""Element-wise passes of training in 16 bits: the GELU's gradient, a bias's gradient, the softmax over the vocabulary.

Formulas as in `kernels.float32.gelu` and `kernels.float32.cross_entropy`; arithmetic in float32, one rounding for each
number written.
"""

import math

import numpy as np

from threadloom.kernels.compiling import Floats, TokenIds, jit_kernel
from threadloom.kernels.simd import Bits16, exp32, load16, row_max, sigmoid32, store16

_LINEAR = np.float32(1.5957691216057308)  # 2 sqrt(2 / pi), as in kernels.gelu
_CUBIC = np.float32(0.07135481282636)  # 0.044715 * 2 sqrt(2 / pi)
_THREE = np.float32(3.0)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@jit_kernel
def gelu_backward_low(x: Bits16, d: Bits16, out: Bits16, d_bias: Floats, accumulate: bool) -> None:
    """Turn `d`, the gradient of GELU(x), into that of `x` in place, and write GELU(x) to `out`; all (R, F).

    The columns' sums of the new `d`, the gradient of the bias in `x`, go to `d_bias` (F,): written, or added.
    """
    if not accumulate:
        for j in range(d_bias.shape[0]):
            d_bias[j] = _ZERO
    for r in range(x.shape[0]):
        row, gradient, target = x[r], d[r], out[r]
        for j in range(row.shape[0]):
            v = load16(row, j)
            squared = v * v
            s = sigmoid32(v * (_LINEAR + _CUBIC * squared))
            y = v * s
            store16(target, j, y)
            g = load16(gradient, j) * (s + y * (_ONE - s) * (_LINEAR + _THREE * _CUBIC * squared))
            store16(gradient, j, g)
            d_bias[j] += g


@jit_kernel
def gelu_forward_low(x: Bits16, out: Bits16) -> None:
    """Write GELU(x) to `out`; both (R, F). For products that do not end in the GELU by themselves."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        for j in range(row.shape[0]):
            v = load16(row, j)
            store16(target, j, v * sigmoid32(v * (_LINEAR + _CUBIC * v * v)))


@jit_kernel
def bias_backward_low(d_out: Bits16, d_bias: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the sums of the columns of `d_out` (R, O) to `d_bias` (O,)."""
    if not accumulate:
        for j in range(d_bias.shape[0]):
            d_bias[j] = _ZERO
    four = d_out.shape[0] - d_out.shape[0] % 4
    for r in range(0, four, 4):
        a, b, c, d = d_out[r], d_out[r + 1], d_out[r + 2], d_out[r + 3]
        for j in range(d_bias.shape[0]):
            d_bias[j] += (load16(a, j) + load16(b, j)) + (load16(c, j) + load16(d, j))
    for r in range(four, d_out.shape[0]):
        row = d_out[r]
        for j in range(d_bias.shape[0]):
            d_bias[j] += load16(row, j)


@jit_kernel
def cross_entropy_backward_low(logits: Floats, targets: TokenIds, scale: float, d_logits: Bits16) -> float:
    """Return the sum of the cross-entropies of the rows of `logits` (n, V), and write the gradient to `d_logits`.

    The gradient is ``(softmax - one-hot) * scale``, rounded once; `logits` are overwritten.
    """
    factor = np.float32(scale)
    total = 0.0
    for r in range(targets.shape[0]):
        row, low = logits[r], d_logits[r]
        target = targets[r]
        largest = row_max(row, row.shape[0])
        total += np.float64(largest) - np.float64(row[target])
        exponentials = _ZERO
        for j in range(row.shape[0]):
            e = exp32(row[j] - largest)
            row[j] = e
            exponentials += e
        total += math.log(exponentials)
        share = factor / exponentials
        at_target = row[target] * share - factor
        for j in range(row.shape[0]):
            store16(low, j, row[j] * share)
        store16(low, target, at_target)
    return total
