"""GELU in GPT-2's tanh form, over float32 matrices. `kernels.common.gelu` has the formula."""

from threadloom.kernels.common import gelu, gelu_and_derivative
from threadloom.kernels.compiling import Floats, jit_kernel


@jit_kernel
def gelu_forward(x: Floats, out: Floats) -> None:
    """Write GELU(x) to `out`; both (R, F). The bias of the preceding layer is already in `x`."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        for j in range(row.shape[0]):
            target[j] = gelu(row[j])


@jit_kernel
def gelu_backward(x: Floats, d: Floats, out: Floats) -> None:
    """Replace `d`, the gradient of GELU(x), by the gradient of `x`, and recompute GELU(x) into `out`; all (R, F)."""
    for r in range(x.shape[0]):
        row, gradient, target = x[r], d[r], out[r]
        for j in range(row.shape[0]):
            y, derivative = gelu_and_derivative(row[j])
            target[j] = y
            gradient[j] *= derivative
