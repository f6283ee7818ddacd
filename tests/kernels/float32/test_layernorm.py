"""Tests of LayerNorm in float32, with the gradient of its input written or added to the residual stream's."""

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from tests import reference
from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from tests.reference import Array
from tests.rounding_marks import total
from threadloom.kernels.common.layernorm import Affine
from threadloom.kernels.float32.layernorm import (
    RowStatistics,
    layernorm_apply,
    layernorm_backward,
    layernorm_forward,
)

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
def test_forward_and_the_recomputed_output(rows: int, channels: int, offset: float, spread: float) -> None:
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    x = make_input(rng, rows, channels, offset, spread)
    weight, bias = float32_numbers(rng, channels), float32_numbers(rng, channels)
    in_x, affine = memory.copy(x), Affine(memory.copy(weight), memory.copy(bias))
    out, statistics = memory.empty(rows, channels), RowStatistics(memory.empty(rows), memory.empty(rows))
    layernorm_forward(in_x, affine, out, statistics)

    def results() -> dict[str, Array]:
        mean, rstd = reference.layernorm_statistics(x)
        return {"out": reference.layernorm_forward(x, weight, bias), "mean": mean, "rstd": rstd}

    found, bounds = with_bounds(results)
    expected = found["out"]
    assert_close(out, expected, bounds["out"], "out")
    assert_close(statistics.rstd, found["rstd"], bounds["rstd"], "rstd")
    assert_close(statistics.mean, found["mean"], bounds["mean"], "mean")
    again = memory.empty(rows, channels)
    layernorm_apply(in_x, affine, statistics, again)
    assert_close(again, expected, bounds["out"], "again")
    memory.check()


@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@example(rows=3, channels=1, offset=0.0, spread=1.0)
@example(rows=1, channels=8, offset=0.0, spread=3e-3)
@given(rows=ROWS, channels=CHANNELS, offset=OFFSET, spread=SPREAD)
def test_backward(accumulate: bool, rows: int, channels: int, offset: float, spread: float) -> None:
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    x = make_input(rng, rows, channels, offset, spread)
    weight, d_out = float32_numbers(rng, channels), float32_numbers(rng, rows, channels)
    before = float32_numbers(rng, rows, channels)
    old = float32_numbers(rng, 2, channels) if accumulate else np.zeros((2, channels))

    def results() -> dict[str, Array]:
        dx, d_weight, d_bias = reference.layernorm_backward(d_out, x, weight)
        return {"dx": total(before, dx), "weight": total(old[0], d_weight), "bias": total(old[1], d_bias)}

    expected, bounds = with_bounds(results)
    statistics = RowStatistics(*(memory.copy(part) for part in reference.layernorm_statistics(x)))
    out_dx, out_weight, out_bias = memory.copy(before), memory.empty(channels), memory.empty(channels)
    if accumulate:
        out_weight[...], out_bias[...] = old
    d_affine = Affine(out_weight, out_bias)
    in_d_out, in_x, in_weight = memory.copy(d_out), memory.copy(x), memory.copy(weight)
    layernorm_backward(in_d_out, in_x, in_weight, statistics, out_dx, d_affine, accumulate)
    for name, found in (("dx", out_dx), ("weight", out_weight), ("bias", out_bias)):
        assert_close(found, expected[name], bounds[name], name)
    memory.check()


def test_nan_stays_in_its_row() -> None:
    x = np.ones((3, 9), np.float32)
    x[:, ::2] = -1.0
    x[1, 4] = np.nan
    out, statistics = np.empty_like(x), RowStatistics(np.empty(3, np.float32), np.empty(3, np.float32))
    layernorm_forward(x, Affine(np.ones(9, np.float32), np.zeros(9, np.float32)), out, statistics)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
