"""Gated activation of an MLP, ``SiLU(gate) * up`` (Shazeer, 2020, equation 6), in every number format."""

from threadloom.kernels.common.silu import silu, silu_and_derivative
from threadloom.kernels.compiling import jit_kernel
from threadloom.kernels.simd import FloatRow, load_element, store_result


@jit_kernel
def swiglu_forward(gate_up: FloatRow, out: FloatRow) -> None:
    """Write ``SiLU(gate) * up`` to `out` (R, F); `gate_up` (R, 2F) is the columns of the gate, then those of up."""
    width = out.shape[1]
    for r in range(out.shape[0]):
        gate, up, target = gate_up[r, :width], gate_up[r, width:], out[r]
        for j in range(width):
            store_result(target, j, silu(load_element(gate, j)) * load_element(up, j))


@jit_kernel
def swiglu_backward(gate_up: FloatRow, d_out: FloatRow, d_gate_up: FloatRow, out: FloatRow) -> None:
    """Write the gradient of `gate_up` (R, 2F) to `d_gate_up`, given `d_out` (R, F), that of the result.

    The result of `swiglu_forward` is recomputed into `out` (R, F).
    """
    width = out.shape[1]
    for r in range(out.shape[0]):
        gate, up, d, target = gate_up[r, :width], gate_up[r, width:], d_out[r], out[r]
        d_gate, d_up = d_gate_up[r, :width], d_gate_up[r, width:]
        for j in range(width):
            y, derivative = silu_and_derivative(load_element(gate, j))
            factor, gradient = load_element(up, j), load_element(d, j)
            store_result(target, j, y * factor)
            store_result(d_gate, j, gradient * factor * derivative)
            store_result(d_up, j, gradient * y)
