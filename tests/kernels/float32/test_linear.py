"""Linear layers, with the bias and the residual added in."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import product_error
from tests.kernels.comparison import assert_within
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from threadloom.kernels.float32.linear import (
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_residual_forward,
)

SHAPES = {"rows": st.integers(1, 40), "inputs": st.integers(1, 70), "outputs": st.integers(1, 70)}


@pytest.mark.parametrize("biased", [True, False])
@random_shapes
@given(**SHAPES)
def test_forward(biased: bool, rows: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng([rows, inputs, outputs])
    memory = Guarded()
    x, weight, bias = (float32_numbers(rng, *shape) for shape in [(rows, inputs), (inputs, outputs), (outputs,)])
    residual = float32_numbers(rng, rows, outputs)
    in_x, in_weight, in_bias = memory.copy(x), memory.copy(weight), memory.copy(bias if biased else bias[:0])
    bias = bias if biased else np.zeros(outputs)
    out, added = memory.empty(rows, outputs), memory.empty(rows, outputs)
    linear_forward(in_x, in_weight, in_bias, out)
    linear_residual_forward(in_x, in_weight, in_bias, memory.copy(residual), added)
    expected = reference.linear_forward(x, weight, bias)
    assert_within(out, expected, product_error(x, weight, bias), "out")
    assert_within(added, residual + expected, product_error(x, weight, bias, residual), "added")
    memory.check()


@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@given(**SHAPES)
def test_backward(accumulate: bool, rows: int, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng([rows, inputs, outputs])
    memory = Guarded()
    x, weight = float32_numbers(rng, rows, inputs), float32_numbers(rng, inputs, outputs)
    d_out = float32_numbers(rng, rows, outputs)
    dx, d_weight, d_bias = reference.linear_backward(d_out, x, weight)
    out_dx, out_weight, out_bias = memory.empty(rows, inputs), memory.empty(inputs, outputs), memory.empty(outputs)
    before_weight, before_bias = np.zeros((inputs, outputs)), np.zeros(outputs)
    if accumulate:
        before_weight, before_bias = float32_numbers(rng, inputs, outputs), float32_numbers(rng, outputs)
        out_weight[...], d_weight = before_weight, d_weight + before_weight
        out_bias[...], d_bias = before_bias, d_bias + before_bias
    in_d_out = memory.copy(d_out)
    linear_backward_input(in_d_out, memory.copy(weight), out_dx)
    linear_backward_weight(memory.copy(x), in_d_out, out_weight, accumulate)
    linear_backward_bias(in_d_out, out_bias, accumulate)
    assert_within(out_dx, dx, product_error(d_out, weight.T), "dx")
    assert_within(out_weight, d_weight, product_error(x.T, d_out, before_weight), "weight")
    bias_error = product_error(np.ones((1, rows)), d_out, before_bias)[0]  # a product with a row of ones
    assert_within(out_bias, d_bias, bias_error, "bias")
    memory.check()


def test_a_gradient_without_elements_is_not_computed() -> None:
    """It belongs to a parameter that is not trained."""
    x, d_out = np.ones((3, 5), np.float32), np.ones((3, 7), np.float32)
    memory = np.full(100, 77.0, np.float32)
    for accumulate in (False, True):
        linear_backward_weight(x, d_out, memory[:0].reshape(0, 0), accumulate)
        linear_backward_bias(d_out, memory[:0], accumulate)
    assert (memory == 77.0).all()
