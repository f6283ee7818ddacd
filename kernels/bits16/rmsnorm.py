"""RMS norm between 16-bit tensors and a float32 residual stream (Zhang and Sennrich, 2019, equation 4).

The forward pass keeps n = x * rstd, rounded, and computes its output from the rounded n. So the backward pass
recomputes the output bit for bit, and does not need x.
"""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.bits16.layernorm import NormalizedRows
from threadloom.kernels.bits16.norm_rows import NO_BIAS, normalise_row, scale_row
from threadloom.kernels.common import Part, reciprocal_rms
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.simd import Bits16, load16, store16

_ZERO = np.float32(0.0)


class RmsNormGradients(NamedTuple):
    """Gradients of an RMS norm's weight, and of the bias added to the residual stream just before it.

    Both are (C,), or (0,): then the gradient is not computed.
    """

    weight: Floats
    added: Floats


@jit_kernel
def rmsnorm_forward(
    x: Floats, weight: Floats, epsilon: float, added: Floats, kept: NormalizedRows, out: Bits16
) -> None:
    """Write the normalised rows of `x` to ``kept.n``, and ``n * weight`` to `out`; all (R, C).

    Then add `added` (C,) to every row of `x`: the bias of the linear layer whose result is added to `x` next. An
    `added` of length 0 adds nothing.
    """
    for r in range(x.shape[0]):
        row, n, target = x[r], kept.n[r], out[r]
        rstd = reciprocal_rms(row, np.float32(epsilon))
        kept.rstd[r] = rstd
        normalise_row(row, _ZERO, rstd, weight, weight[:0], n, target)
        for j in range(added.shape[0]):
            row[j] += added[j]


@jit_kernel
def rmsnorm_apply(n: Bits16, weight: Floats, out: Bits16) -> None:
    """Write the output of `rmsnorm_forward`, recomputed from the normalised rows, to `out`; both (R, C)."""
    for r in range(n.shape[0]):
        row, target = n[r], out[r]
        for j in range(row.shape[0]):
            store16(target, j, load16(row, j) * weight[j])


@jit_kernel
def rmsnorm_apply_transposed(n_t: Bits16, weight: Floats) -> None:
    """Replace the transposed normalised rows (C, R) by the transposed output of `rmsnorm_forward`."""
    for j in range(n_t.shape[0]):
        scale_row(n_t[j], weight[j], NO_BIAS)


@jit_kernel
def rmsnorm_backward(
    d_out: Floats,
    kept: NormalizedRows,
    weight: Floats,
    dx: Floats,
    dx16: Bits16,
    grads: RmsNormGradients,
    accumulate: bool,
) -> None:
    """Compute the gradients of the input (R, C) and the weight (C,) from `d_out`, that of the output.

    Formulas as in `kernels.float32.rmsnorm.rmsnorm_backward`. The gradient of the input is added to `dx`, that of the
    residual stream in float32; `dx16` is the sum, rounded. The column sums of `dx` go to ``grads.added``: the gradient
    of the bias that was added to the residual stream just before. The gradients of parameters are written, or added
    when `accumulate`.
    """
    if not accumulate:
        grads.weight.fill(0.0)
        grads.added.fill(0.0)
    for r in range(dx.shape[0]):
        n, d, target, rounded, rstd = kept.n[r], d_out[r], dx[r], dx16[r], kept.rstd[r]
        total = _ZERO
        for j in range(d.shape[0]):
            total += d[j] * weight[j] * load16(n, j)
        for j in range(grads.weight.shape[0]):
            grads.weight[j] += d[j] * load16(n, j)
        mean = total / np.float32(d.shape[0])
        for j in range(d.shape[0]):
            target[j] += rstd * (d[j] * weight[j] - load16(n, j) * mean)
            store16(rounded, j, target[j])
        for j in range(grads.added.shape[0]):
            grads.added[j] += target[j]


@jit_kernel
def rmsnorm_backward_columns(d_out: Floats, n: Bits16, columns: Part, d_weight: Floats, accumulate: bool) -> None:
    """Compute some columns of the gradient of the weight, with the bits of `rmsnorm_backward`.

    `n` are the normalised rows. An array without elements, of a frozen tensor, is not computed.
    """
    target = d_weight[columns.first : columns.last]
    if not accumulate:
        target.fill(_ZERO)
    for r in range(n.shape[0]):
        row, d = n[r][columns.first : columns.last], d_out[r][columns.first : columns.last]
        for j in range(target.shape[0]):
            target[j] += d[j] * load16(row, j)
