"""LayerNorm between 16-bit tensors and a float32 residual stream (Ba, Kiros and Hinton, 2016, equation 4).

The forward pass keeps n = (x - mean) * rstd, rounded, and computes its output from the rounded n. So the backward pass
recomputes the output bit for bit, and needs neither x nor its mean.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.bits16.norm_rows import normalise_row, scale_row
from threadloom.kernels.common import Affine, Part, plus_product, row_statistics
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel, jit_strict_fp
from threadloom.kernels.simd import Bits16, load16, store16

_ZERO = np.float32(0.0)


class NormalizedRows(NamedTuple):
    """Rows that the forward pass of a norm keeps for the backward pass."""

    n: Bits16  # (R, C) (x - mean) * rstd, rounded; the mean is 0 in an RMS norm
    rstd: Floats  # (R,) reciprocal standard deviation; in an RMS norm, reciprocal root of the mean of squares


class LayerNormGradients(NamedTuple):
    """Gradients of a LayerNorm's parameters, and of the bias added to the residual stream just before it; all (C,)."""

    weight: Floats
    bias: Floats
    added: Floats


@jit_kernel
def layernorm_forward(x: Floats, affine: Affine, added: Floats, kept: NormalizedRows, out: Bits16) -> None:
    """Write the normalised rows of `x` to ``kept.n``, and ``n * weight + bias`` to `out`; all (R, C).

    Then add `added` (C,) to every row of `x`: the bias of the linear layer whose result is added to `x` next. An
    `added` of length 0 adds nothing.
    """
    for r in range(x.shape[0]):
        row, n, target = x[r], kept.n[r], out[r]
        mean, rstd = row_statistics(row)
        kept.rstd[r] = rstd
        normalise_row(row, mean, rstd, affine.weight, affine.bias, n, target)
        for j in range(added.shape[0]):
            row[j] += added[j]


@jit_kernel
def layernorm_apply(n: Bits16, affine: Affine, out: Bits16) -> None:
    """Write the output of `layernorm_forward`, recomputed from the normalised rows, to `out`; both (R, C)."""
    for r in range(n.shape[0]):
        row, target = n[r], out[r]
        for j in range(row.shape[0]):
            store16(target, j, load16(row, j) * affine.weight[j] + affine.bias[j])


@jit_kernel
def layernorm_apply_transposed(n_t: Bits16, affine: Affine) -> None:
    """Replace the transposed normalised rows (C, R) by the transposed output of `layernorm_forward`."""
    for j in range(n_t.shape[0]):
        scale_row(n_t[j], affine.weight[j], affine.bias[j])


@jit_kernel
def _clear(grads: LayerNormGradients) -> None:
    for j in range(grads.weight.shape[0]):
        grads.weight[j] = _ZERO
        grads.bias[j] = _ZERO
        grads.added[j] = _ZERO


@jit_inline_body
def _affine_backward(d: Floats, n: Bits16, weight: Floats, grads: LayerNormGradients) -> tuple[np.float32, np.float32]:
    """Add one row's gradient of weight and bias; return ``mean(g)`` and ``mean(g * n)`` as in `layernorm_backward`."""
    channels = np.float32(d.shape[0])
    sum_g = _ZERO
    sum_gn = _ZERO
    for j in range(d.shape[0]):
        value = load16(n, j)
        g = d[j] * weight[j]
        sum_g += g
        sum_gn += g * value
        grads.weight[j] += d[j] * value
        grads.bias[j] += d[j]
    return sum_g / channels, sum_gn / channels


@jit_inline_body
def _round_and_sum(dx: Floats, dx16: Bits16, d_added: Floats) -> None:
    for j in range(dx.shape[0]):
        store16(dx16, j, dx[j])
        d_added[j] += dx[j]


@jit_kernel
def layernorm_backward(
    d_out: Floats,
    kept: NormalizedRows,
    weight: Floats,
    dx: Floats,
    dx16: Bits16,
    grads: LayerNormGradients,
    accumulate: bool,
) -> None:
    """Compute the gradients of the input (R, C), the weight and the bias (C,) from `d_out`, that of the output.

    Formulas as in `kernels.float32.layernorm.layernorm_backward`. The gradient of the input is added to `dx`, that of
    the residual stream in float32; `dx16` is the sum, rounded. The column sums of `dx` go to ``grads.added``: the
    gradient of the bias that was added to the residual stream just before. The gradients of parameters are written, or
    added when `accumulate`.
    """
    if not accumulate:
        _clear(grads)
    for r in range(dx.shape[0]):
        n, d, target, rstd = kept.n[r], d_out[r], dx[r], kept.rstd[r]
        mean_g, mean_gn = _affine_backward(d, n, weight, grads)
        for j in range(d.shape[0]):
            target[j] += rstd * (d[j] * weight[j] - mean_g - load16(n, j) * mean_gn)
        _round_and_sum(target, dx16[r], grads.added)


@jit_strict_fp  # nothing is reassociated: `_affine_backward` uses the product of an element for its row's sum, too
def layernorm_backward_columns(d_out: Floats, n: Bits16, columns: Part, d_affine: Affine, accumulate: bool) -> None:
    """Compute some columns of the gradients of weight and bias, with the bits of `layernorm_backward`.

    `n` are the normalised rows. An array without elements, of a frozen tensor, is not computed.
    """
    d_weight, d_bias = d_affine.weight[columns.first : columns.last], d_affine.bias[columns.first : columns.last]
    if not accumulate:
        d_weight.fill(_ZERO)
        d_bias.fill(_ZERO)
    for r in range(n.shape[0]):
        row, d = n[r][columns.first : columns.last], d_out[r][columns.first : columns.last]
        for j in range(d_weight.shape[0]):
            d_weight[j] = plus_product(d_weight[j], d[j], load16(row, j))
        for j in range(d_bias.shape[0]):
            d_bias[j] += d[j]
