"""Layer normalisation over the channels of each row, in float32 (Ba, Kiros and Hinton, 2016, equation 4)."""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.common import Affine, Part, plus_product, row_statistics
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel, jit_strict_fp

_ZERO = np.float32(0.0)


class RowStatistics(NamedTuple):
    """Statistics of the rows that `layernorm_forward` keeps for the backward pass."""

    mean: Floats  # (R,)
    rstd: Floats  # (R,) reciprocal standard deviation


@jit_kernel
def layernorm_row(row: Floats, affine: Affine, out: Floats) -> tuple[np.float32, np.float32]:
    """Write ``(row - mean) * rstd * weight + bias`` to `out`, all (C,); return mean and rstd."""
    mean, rstd = row_statistics(row)
    for j in range(row.shape[0]):
        out[j] = (row[j] - mean) * rstd * affine.weight[j] + affine.bias[j]
    return mean, rstd


@jit_kernel
def layernorm_forward(x: Floats, affine: Affine, out: Floats, statistics: RowStatistics) -> None:
    """Write the normalised rows of `x` to `out`, both (R, C), and keep their `statistics`."""
    for r in range(x.shape[0]):
        statistics.mean[r], statistics.rstd[r] = layernorm_row(x[r], affine, out[r])


@jit_kernel
def layernorm_apply(x: Floats, affine: Affine, statistics: RowStatistics, out: Floats) -> None:
    """Recompute the output of `layernorm_forward` from the kept `statistics`."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        mean, rstd = statistics.mean[r], statistics.rstd[r]
        for j in range(row.shape[0]):
            target[j] = (row[j] - mean) * rstd * affine.weight[j] + affine.bias[j]


@jit_kernel
def _clear(d_affine: Affine) -> None:
    for j in range(d_affine.weight.shape[0]):
        d_affine.weight[j] = _ZERO
        d_affine.bias[j] = _ZERO


@jit_inline_body
def _affine_backward(
    d_row: Floats, row: Floats, weight: Floats, mean: np.float32, rstd: np.float32, d_affine: Affine
) -> tuple[np.float32, np.float32]:
    """Add one row's gradient of weight and bias; return ``mean(g)`` and ``mean(g * n)`` as in `layernorm_backward`."""
    channels = np.float32(row.shape[0])
    sum_g = _ZERO
    sum_gn = _ZERO
    for j in range(row.shape[0]):
        n = (row[j] - mean) * rstd
        d = d_row[j]
        g = d * weight[j]
        sum_g += g
        sum_gn += g * n
        d_affine.weight[j] += d * n
        d_affine.bias[j] += d
    return sum_g / channels, sum_gn / channels


@jit_kernel
def layernorm_backward(
    d_out: Floats,
    x: Floats,
    weight: Floats,
    statistics: RowStatistics,
    dx: Floats,
    d_affine: Affine,
    accumulate: bool,
) -> None:
    """Compute the gradients of the input (R, C), the weight and the bias (C,) from `d_out`, that of the output.

    That of the input is added to `dx`, the gradient of the residual stream that `x` is part of.
    With n = (x - mean) * rstd and g = d_out * weight: ``dx = rstd * (g - mean(g) - n * mean(g * n))``, means over the
    channels. ``d_weight = sum(d_out * n)`` and ``d_bias = sum(d_out)`` over the rows, written or added (`accumulate`).
    """
    if not accumulate:
        _clear(d_affine)
    for r in range(x.shape[0]):
        row, d_row, target = x[r], d_out[r], dx[r]
        mean, rstd = statistics.mean[r], statistics.rstd[r]
        mean_g, mean_gn = _affine_backward(d_row, row, weight, mean, rstd, d_affine)
        for j in range(row.shape[0]):
            n = (row[j] - mean) * rstd
            target[j] += rstd * (d_row[j] * weight[j] - mean_g - n * mean_gn)


@jit_strict_fp  # nothing is reassociated: in the loop of `_affine_backward` the normalised element is used twice
def layernorm_backward_columns(
    d_out: Floats, x: Floats, statistics: RowStatistics, columns: Part, d_affine: Affine, accumulate: bool
) -> None:
    """Compute some columns of the gradients of weight and bias, with the bits of `layernorm_backward`.

    An array without elements, of a frozen tensor, is not computed.
    """
    d_weight, d_bias = d_affine.weight[columns.first : columns.last], d_affine.bias[columns.first : columns.last]
    if not accumulate:
        d_weight.fill(_ZERO)
        d_bias.fill(_ZERO)
    for r in range(x.shape[0]):
        row, d_row = x[r][columns.first : columns.last], d_out[r][columns.first : columns.last]
        mean, rstd = statistics.mean[r], statistics.rstd[r]
        for j in range(d_weight.shape[0]):
            d_weight[j] = plus_product(d_weight[j], d_row[j], (row[j] - mean) * rstd)
        for j in range(d_bias.shape[0]):
            d_bias[j] += d_row[j]
