"""LayerNorm, with and without the residual stream's gradient passing by."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests import reference
from tests.kernels.support import BACKWARD, FORWARD, Guarded, assert_close, float32_numbers, random_shapes
from tests.reference import Array
from threadloom.kernels.float32.layernorm import layernorm_apply, layernorm_backward, layernorm_forward

ROWS, CHANNELS = st.integers(1, 40), st.integers(5, 150)
OFFSET = st.sampled_from([0.0, 3.0])
SPREAD = st.sampled_from([1.0, 3e-3, 100.0])  # 3e-3: epsilon is as large as the variance


def make_input(rng: np.random.Generator, rows: int, channels: int, offset: float, spread: float) -> Array:
    x = offset * spread + spread * rng.standard_normal((rows, channels))
    return x.astype(np.float32).astype(np.float64)


@random_shapes
@example(rows=3, channels=1, offset=0.0, spread=1.0)
@example(rows=1, channels=8, offset=0.0, spread=3e-3)
@given(rows=ROWS, channels=CHANNELS, offset=OFFSET, spread=SPREAD)
def test_forward_and_the_output_made_again(rows: int, channels: int, offset: float, spread: float) -> None:
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    x = make_input(rng, rows, channels, offset, spread)
    weight, bias = float32_numbers(rng, channels), float32_numbers(rng, channels)
    in_x, in_weight, in_bias = memory.copy(x), memory.copy(weight), memory.copy(bias)
    out, mean, rstd = memory.empty(rows, channels), memory.empty(rows), memory.empty(rows)
    layernorm_forward(in_x, in_weight, in_bias, out, mean, rstd)
    expected = reference.layernorm_forward(x, weight, bias)
    expected_mean, expected_rstd = reference.layernorm_statistics(x)
    assert_close(out, expected, FORWARD, "out")
    assert_close(rstd, expected_rstd, FORWARD, "rstd")
    assert np.abs(mean - expected_mean).max() <= FORWARD * np.abs(x).max()
    again = memory.empty(rows, channels)
    layernorm_apply(in_x, in_weight, in_bias, mean, rstd, again)
    assert_close(again, expected, FORWARD, "again")
    memory.check()


@pytest.mark.parametrize("add_to_dx", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@example(rows=3, channels=1, offset=0.0, spread=1.0)
@example(rows=1, channels=8, offset=0.0, spread=3e-3)
@given(rows=ROWS, channels=CHANNELS, offset=OFFSET, spread=SPREAD)
def test_backward(add_to_dx: bool, accumulate: bool, rows: int, channels: int, offset: float, spread: float) -> None:
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    x = make_input(rng, rows, channels, offset, spread)
    weight, d_out = float32_numbers(rng, channels), float32_numbers(rng, rows, channels)
    dx, d_weight, d_bias = reference.layernorm_backward(d_out, x, weight)
    mean, rstd = (memory.copy(part) for part in reference.layernorm_statistics(x))
    out_dx, out_weight, out_bias = memory.empty(rows, channels), memory.empty(channels), memory.empty(channels)
    if add_to_dx:
        before = float32_numbers(rng, rows, channels)
        out_dx[...], dx = before, dx + before
    if accumulate:
        before_weight, before_bias = float32_numbers(rng, channels), float32_numbers(rng, channels)
        out_weight[...], d_weight = before_weight, d_weight + before_weight
        out_bias[...], d_bias = before_bias, d_bias + before_bias
    layernorm_backward(
        memory.copy(d_out),
        memory.copy(x),
        memory.copy(weight),
        mean,
        rstd,
        out_dx,
        out_weight,
        out_bias,
        add_to_dx,
        accumulate,
    )
    assert_close(out_dx, dx, BACKWARD, "dx")
    assert_close(out_weight, d_weight, BACKWARD, "weight")
    assert_close(out_bias, d_bias, BACKWARD, "bias")
    memory.check()


def test_nan_stays_in_its_row() -> None:
    x = np.ones((3, 9), np.float32)
    x[:, ::2] = -1.0
    x[1, 4] = np.nan
    out, mean, rstd = np.empty_like(x), np.empty(3, np.float32), np.empty(3, np.float32)
    layernorm_forward(x, np.ones(9, np.float32), np.zeros(9, np.float32), out, mean, rstd)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
