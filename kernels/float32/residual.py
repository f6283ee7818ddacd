"""Outputs of attention and MLP in float32, which are added to the residual stream, after dropout if there is one.

Without dropout the last linear layer adds the residual stream to its product. With dropout its result is in scratch,
and is added afterwards; the backward pass computes the mask again.
"""

from typing import NamedTuple

from threadloom.kernels.common import Dropout, dropout_forward, drops
from threadloom.kernels.compiling import Floats, jit_kernel


class Branch(NamedTuple):
    """Arrays of a linear layer whose output is added to the residual stream."""

    residual: Floats  # (R, C) that the layer adds; (0, C) with dropout
    out: Floats  # (R, C)


@jit_kernel
def residual_branch(dropout: Dropout, residual: Floats, scratch: Floats, out: Floats) -> Branch:
    """Return the arrays of the layer; `dropout_residual` follows, which writes `out` from `scratch`, all (R, C)."""
    return Branch(residual[:0], scratch) if drops(dropout) else Branch(residual, out)


@jit_kernel
def branch_gradient(dx: Floats, dropout: Dropout, scratch: Floats) -> Floats:
    """Return the gradient of the layer's output, given that of the residual stream: `dx` (R, C) without dropout."""
    if not drops(dropout):
        return dx
    dropout_forward(dx, dropout, scratch)
    return scratch
