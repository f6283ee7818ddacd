"""RMS normalisation over the channels of each row, in float32 (Zhang and Sennrich, 2019, equation 4)."""

import numpy as np

from threadloom.kernels.common import Part, reciprocal_rms
from threadloom.kernels.compiling import Floats, jit_kernel

_ZERO = np.float32(0.0)


@jit_kernel
def rmsnorm_row(row: Floats, weight: Floats, epsilon: float, out: Floats) -> np.float32:
    """Write ``row * rstd * weight`` to `out`, all (C,); return ``rstd = 1 / sqrt(mean(row**2) + epsilon)``."""
    rstd = reciprocal_rms(row, np.float32(epsilon))
    for j in range(row.shape[0]):
        out[j] = row[j] * rstd * weight[j]
    return rstd


@jit_kernel
def rmsnorm_forward(x: Floats, weight: Floats, epsilon: float, out: Floats, rstd: Floats) -> None:
    """Write the normalised rows of `x` times `weight` (C,) to `out`, both (R, C), and keep their `rstd` (R,)."""
    for r in range(x.shape[0]):
        rstd[r] = rmsnorm_row(x[r], weight, epsilon, out[r])


@jit_kernel
def rmsnorm_apply(x: Floats, weight: Floats, rstd: Floats, out: Floats) -> None:
    """Recompute the output of `rmsnorm_forward` from the kept `rstd`."""
    for r in range(x.shape[0]):
        row, target, scale = x[r], out[r], rstd[r]
        for j in range(row.shape[0]):
            target[j] = row[j] * scale * weight[j]


@jit_kernel
def rmsnorm_backward(
    d_out: Floats, x: Floats, weight: Floats, rstd: Floats, dx: Floats, d_weight: Floats, accumulate: bool
) -> None:
    """Compute the gradients of the input (R, C) and the weight (C,) from `d_out`, that of the output.

    That of the input is added to `dx`, the gradient of the residual stream that `x` is part of.
    With n = x * rstd and g = d_out * weight: ``dx = rstd * (g - n * mean(g * n))``, a mean over the channels.
    ``d_weight = sum(d_out * n)`` over the rows is written or added (`accumulate`); one of length 0 is not computed.
    """
    if not accumulate:
        d_weight.fill(0.0)
    for r in range(x.shape[0]):
        row, d, target, scale = x[r], d_out[r], dx[r], rstd[r]
        total = _ZERO
        for j in range(row.shape[0]):
            total += d[j] * weight[j] * (row[j] * scale)
        for j in range(d_weight.shape[0]):
            d_weight[j] += d[j] * (row[j] * scale)
        mean = total / np.float32(row.shape[0])
        for j in range(row.shape[0]):
            target[j] += scale * (d[j] * weight[j] - row[j] * scale * mean)


@jit_kernel
def rmsnorm_backward_columns(
    d_out: Floats, x: Floats, rstd: Floats, columns: Part, d_weight: Floats, accumulate: bool
) -> None:
    """Compute some columns of the gradient of the weight, with the bits of `rmsnorm_backward`."""
    part = d_weight[columns.first : columns.last]
    if not accumulate:
        part.fill(0.0)
    for r in range(x.shape[0]):
        row, d, scale = x[r][columns.first : columns.last], d_out[r][columns.first : columns.last], rstd[r]
        for j in range(part.shape[0]):
            part[j] += d[j] * (row[j] * scale)
