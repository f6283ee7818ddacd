"""Outputs of attention and MLP in 16 bits, which are added to the residual stream, after dropout if there is one.

Without dropout the last linear layer adds its float32 sums to the residual stream, to which a norm has added the bias
before. With dropout the output, with the bias, is rounded to 16 bits before elements of it are dropped and the others
scaled and added, in float32. The gradient of the bias is then that of the rounded output.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.bits16.linear import linear_backward_bias
from threadloom.kernels.bits16.lora import LoraInput, adapted_forward, adapted_residual_forward
from threadloom.kernels.bits16.tensors import AdaptedWeight, ThreadScratch
from threadloom.kernels.common import (
    Dropout,
    DropoutRates,
    ResidualSite,
    dropout_forward,
    dropout_residual,
    drops,
    residual_dropout,
)
from threadloom.kernels.compiling import Floats, jit_inline_body, jit_kernel
from threadloom.kernels.simd import Bits16


class ResidualLayer(NamedTuple):
    """A linear layer with its adapter, whose output (R, C) is added to the residual stream."""

    weight: AdaptedWeight
    bias: Floats  # (C,) or (0,)
    given: LoraInput
    xa: Bits16  # (R, P') kept for the backward pass
    dropout: Dropout


@jit_inline_body
def residual_forward(x: Bits16, layer: ResidualLayer, scratch: Bits16, residual: Floats, thread: ThreadScratch) -> None:
    """Add the layer's output to `residual` (R, C); `scratch` (R, C) is written with dropout."""
    if drops(layer.dropout):
        adapted_forward(x, layer.weight, layer.given, layer.xa, layer.bias, scratch, thread)
        dropout_residual(scratch, layer.dropout, residual, residual)
    else:
        adapted_residual_forward(x, layer.weight, layer.given, layer.xa, residual, thread)


@jit_inline_body
def bias_beside_norm(bias: Floats, dropout: Dropout) -> Floats:
    """Return a bias, or its gradient, as a norm adds or computes it: without elements with dropout."""
    return bias[:0] if drops(dropout) else bias


@jit_inline_body
def last_bias_beside_norm(biases: Floats, rates: DropoutRates, key: NDArray[np.uint64]) -> Floats:
    """Return the gradient of the bias (C,) of the last MLP, of those of all layers (L, C), for the last norm."""
    return bias_beside_norm(biases[biases.shape[0] - 1], residual_dropout(rates, key, 0, ResidualSite.MLP))


@jit_kernel
def branch_gradient(dx: Floats, dropout: Dropout, dx16: Bits16, d_bias: Floats, accumulate: bool) -> None:
    """Write the gradient of the layer's output to `dx16`, given that of the residual stream, `dx`, both (R, C).

    Without dropout `dx16` has it already. With dropout, the gradient of the bias is written, or added when
    `accumulate`.
    """
    if drops(dropout):
        dropout_forward(dx, dropout, dx16)
        linear_backward_bias(dx16, d_bias, accumulate)
