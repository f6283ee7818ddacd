"""Linear layers in float32: ``y = x @ weight + bias``, with weights stored (inputs, outputs) as in GPT-2's files.

The bias (and the residual) is written to the output first, and the GEMM adds to it: BLAS would otherwise spend a pass
on clearing the output. A layer without bias has one of length 0. The gradient of a parameter that is not trained is an
array without elements, and is not computed.
"""

from threadloom.kernels.common import Part
from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.matmul import Op, gemm


@jit_kernel
def linear_forward(x: Floats, weight: Floats, bias: Floats, out: Floats) -> None:
    """Write ``x @ weight + bias`` to `out`: x (R, I), weight (I, O), bias (O,) or (0,), out (R, O)."""
    beta = 0.0
    if bias.size:
        beta = 1.0
        for r in range(out.shape[0]):
            row = out[r]
            for j in range(row.shape[0]):
                row[j] = bias[j]
    gemm(x, weight, out, Op.N, Op.N, 1.0, beta)


@jit_kernel
def linear_residual_forward(x: Floats, weight: Floats, bias: Floats, residual: Floats, out: Floats) -> None:
    """Write ``residual + x @ weight + bias`` to `out`: as `linear_forward`, with a residual (R, O), or (0, O): none."""
    for r in range(out.shape[0]):
        row = out[r]
        if residual.shape[0] > 0:
            base = residual[r]
            for j in range(row.shape[0]):
                row[j] = base[j]
        else:
            row.fill(0.0)
        for j in range(bias.shape[0]):
            row[j] += bias[j]
    gemm(x, weight, out, Op.N, Op.N, 1.0, 1.0)


@jit_kernel
def linear_backward_input(d_out: Floats, weight: Floats, dx: Floats) -> None:
    """Write the gradient of the input, ``d_out @ weight.T``, to `dx` (R, I)."""
    gemm(d_out, weight, dx, Op.N, Op.T, 1.0, 0.0)


@jit_kernel
def linear_backward_weight(x: Floats, d_out: Floats, d_weight: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the gradient of the weight, ``x.T @ d_out``, to `d_weight` (I, O)."""
    if d_weight.size:
        gemm(x, d_out, d_weight, Op.T, Op.N, 1.0, 1.0 if accumulate else 0.0)


@jit_kernel
def linear_backward_bias_columns(d_out: Floats, columns: Part, d_bias: Floats, accumulate: bool) -> None:
    """Compute some columns of the gradient of the bias, with the bits of `linear_backward_bias`."""
    target = d_bias[columns.first : columns.last]
    if not accumulate:
        target.fill(0.0)
    rows = d_out.shape[0]
    four = rows - rows % 4
    for r in range(0, four, 4):
        a, b = d_out[r][columns.first : columns.last], d_out[r + 1][columns.first : columns.last]
        c, d = d_out[r + 2][columns.first : columns.last], d_out[r + 3][columns.first : columns.last]
        for j in range(target.shape[0]):
            target[j] += (a[j] + b[j]) + (c[j] + d[j])
    for r in range(four, rows):
        row = d_out[r][columns.first : columns.last]
        for j in range(target.shape[0]):
            target[j] += row[j]


@jit_kernel
def linear_backward_bias(d_out: Floats, d_bias: Floats, accumulate: bool) -> None:
    """Write, or add when `accumulate`, the gradient of the bias, the sum of `d_out`'s rows, to `d_bias` (O,)."""
    rows, columns = d_out.shape[0], d_bias.shape[0]
    if not accumulate:
        for j in range(columns):
            d_bias[j] = 0.0
    four = rows - rows % 4
    for r in range(0, four, 4):
        a, b, c, d = d_out[r], d_out[r + 1], d_out[r + 2], d_out[r + 3]
        for j in range(columns):
            d_bias[j] += (a[j] + b[j]) + (c[j] + d[j])
    for r in range(four, rows):
        row = d_out[r]
        for j in range(columns):
            d_bias[j] += row[j]


@jit_kernel
def logits_forward(h: Floats, wte: Floats, logits: Floats) -> None:
    """Write ``h @ wte.T``, the projection tied to the token embedding (V, C), to `logits` (rows, V): h (rows, C)."""
    gemm(h, wte, logits, Op.N, Op.T, 1.0, 0.0)


@jit_kernel
def logits_backward_input(d_logits: Floats, wte: Floats, dh: Floats) -> None:
    """Write ``d_logits @ wte``, the gradient of the input of `logits_forward`, to `dh` (rows, C)."""
    gemm(d_logits, wte, dh, Op.N, Op.N, 1.0, 0.0)
