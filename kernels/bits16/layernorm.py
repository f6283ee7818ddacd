"""LayerNorm between 16-bit tensors and a float32 residual stream (Ba, Kiros and Hinton, 2016, equation 4).

What is kept for backward is n = (x - mean) * rstd, rounded; the output is made from the rounded n, so that backward
makes the very same output again, and needs neither x nor its mean.
"""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.float32 import EPSILON
from threadloom.kernels.simd import Bits16, load16, store16

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@jit_kernel
def layernorm_forward_low(
    x: Floats, weight: Floats, bias: Floats, added: Floats, normed: Bits16, out: Bits16, rstd: Floats
) -> None:
    """Write the normalised rows of `x` to `normed`, and ``normed * weight + bias`` to `out`; all (R, C).

    Then `added` (C,) is added to every row of `x`: the bias of the product whose result is added to it next. `rstd`
    (R,) is kept for backward. A length of 0 adds nothing.
    """
    channels = np.float32(x.shape[1])
    for r in range(x.shape[0]):
        row, n, target = x[r], normed[r], out[r]
        total = _ZERO
        for j in range(row.shape[0]):
            total += row[j]
        mean = np.float32(total / channels)
        squares = _ZERO
        for j in range(row.shape[0]):
            centred = row[j] - mean
            squares += centred * centred
        scale = np.float32(_ONE / np.sqrt(squares / channels + EPSILON))
        rstd[r] = scale
        for j in range(row.shape[0]):
            store16(n, j, (row[j] - mean) * scale)
        for j in range(row.shape[0]):
            store16(target, j, load16(n, j) * weight[j] + bias[j])
        for j in range(added.shape[0]):
            row[j] += added[j]


@jit_kernel
def layernorm_apply_turned(turned: Bits16, weight: Floats, bias: Floats) -> None:
    """Turn the transposed `normed`, (C, R), into the transposed output of `layernorm_forward_low`, in place."""
    for j in range(turned.shape[0]):
        row, w, b = turned[j], weight[j], bias[j]
        for r in range(row.shape[0]):
            store16(row, r, load16(row, r) * w + b)


@jit_kernel
def layernorm_backward_low(
    d_out: Floats,
    normed: Bits16,
    weight: Floats,
    rstd: Floats,
    dx: Floats,
    dx_low: Bits16,
    d_weight: Floats,
    d_bias: Floats,
    d_added: Floats,
    add_to_dx: bool,
    accumulate: bool,
) -> None:
    """Give the gradients of the input (R, C), the weight and the bias (C,), as `layernorm_backward` does.

    `dx` is float32, `dx_low` the same rounded. The columns' sums of `dx` go to `d_added` (C,): the gradient of the bias
    that was added to the residual stream just before. The three (C,) results are written, or added (`accumulate`).
    """
    channels = np.float32(dx.shape[1])
    if not accumulate:
        for j in range(d_weight.shape[0]):
            d_weight[j] = _ZERO
            d_bias[j] = _ZERO
            d_added[j] = _ZERO
    for r in range(dx.shape[0]):
        n, d, target, low = normed[r], d_out[r], dx[r], dx_low[r]
        scale = rstd[r]
        sum_g = _ZERO
        sum_gn = _ZERO
        for j in range(d.shape[0]):
            value = load16(n, j)
            g = d[j] * weight[j]
            sum_g += g
            sum_gn += g * value
            d_weight[j] += d[j] * value
            d_bias[j] += d[j]
        mean_g = sum_g / channels
        mean_gn = sum_gn / channels
        if add_to_dx:
            for j in range(d.shape[0]):
                target[j] += scale * (d[j] * weight[j] - mean_g - load16(n, j) * mean_gn)
        else:
            for j in range(d.shape[0]):
                target[j] = scale * (d[j] * weight[j] - mean_g - load16(n, j) * mean_gn)
        for j in range(d.shape[0]):
            store16(low, j, target[j])
            d_added[j] += target[j]
