"""Layer normalisation (Ba, Kiros and Hinton, 2016, equation 4), over the channels of each row, with GPT-2's epsilon."""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_kernel

EPSILON = np.float32(1e-5)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@jit_kernel
def layernorm_row(row: Floats, weight: Floats, bias: Floats, out: Floats) -> tuple[np.float32, np.float32]:
    """Write ``(row - mean) * rstd * weight + bias`` to `out`, all (C,), and return mean and rstd.

    ``rstd = 1 / sqrt(var + 1e-5)`` with the biased variance, summed from the centred row.
    """
    channels = np.float32(row.shape[0])
    total = _ZERO
    for j in range(row.shape[0]):
        total += row[j]
    mean = np.float32(total / channels)
    squares = _ZERO
    for j in range(row.shape[0]):
        centred = row[j] - mean
        squares += centred * centred
    rstd = np.float32(_ONE / np.sqrt(squares / channels + EPSILON))
    for j in range(row.shape[0]):
        out[j] = (row[j] - mean) * rstd * weight[j] + bias[j]
    return mean, rstd


@jit_kernel
def layernorm_forward(x: Floats, weight: Floats, bias: Floats, out: Floats, mean: Floats, rstd: Floats) -> None:
    """Write the normalised rows of `x` to `out`, both (R, C), and keep `mean` and `rstd` (R,) for backward."""
    for r in range(x.shape[0]):
        mean[r], rstd[r] = layernorm_row(x[r], weight, bias, out[r])


@jit_kernel
def layernorm_apply(x: Floats, weight: Floats, bias: Floats, mean: Floats, rstd: Floats, out: Floats) -> None:
    """Make the output of `layernorm_forward` again from the kept `mean` and `rstd`."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        middle, scale = mean[r], rstd[r]
        for j in range(row.shape[0]):
            target[j] = (row[j] - middle) * scale * weight[j] + bias[j]


@jit_kernel
def layernorm_backward(
    d_out: Floats,
    x: Floats,
    weight: Floats,
    mean: Floats,
    rstd: Floats,
    dx: Floats,
    d_weight: Floats,
    d_bias: Floats,
    add_to_dx: bool,
    accumulate: bool,
) -> None:
    """Give the gradients of the input (R, C), the weight and the bias (C,).

    With n = (x - mean) * rstd and g = d_out * weight: ``dx = rstd * (g - mean(g) - n * mean(g * n))``, means over the
    channels, written to `dx` or added to it (`add_to_dx`, where a residual stream passes by). ``d_weight = sum(d_out *
    n)`` and ``d_bias = sum(d_out)`` over the rows, written or added (`accumulate`).
    """
    channels = np.float32(x.shape[1])
    if not accumulate:
        for j in range(d_weight.shape[0]):
            d_weight[j] = _ZERO
            d_bias[j] = _ZERO
    for r in range(x.shape[0]):
        row, d_row, target = x[r], d_out[r], dx[r]
        middle, scale = mean[r], rstd[r]
        sum_g = _ZERO
        sum_gn = _ZERO
        for j in range(row.shape[0]):
            n = (row[j] - middle) * scale
            d = d_row[j]
            g = d * weight[j]
            sum_g += g
            sum_gn += g * n
            d_weight[j] += d * n
            d_bias[j] += d
        mean_g = sum_g / channels
        mean_gn = sum_gn / channels
        if add_to_dx:
            for j in range(row.shape[0]):
                n = (row[j] - middle) * scale
                target[j] += scale * (d_row[j] * weight[j] - mean_g - n * mean_gn)
        else:
            for j in range(row.shape[0]):
                n = (row[j] - middle) * scale
                target[j] = scale * (d_row[j] * weight[j] - mean_g - n * mean_gn)
