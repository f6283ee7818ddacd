"""RMS norm in float32, with the gradient of its input added to the residual stream's."""

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from tests import reference
from tests.error_bounds import with_bounds
from tests.kernels.comparison import assert_close
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from tests.reference import Array
from tests.rounding_marks import total
from threadloom.kernels.float32.rmsnorm import rmsnorm_apply, rmsnorm_backward, rmsnorm_forward

ROWS, CHANNELS = st.integers(1, 40), st.integers(5, 150)
SPREAD = st.sampled_from([1.0, 1e-3, 100.0])  # 1e-3: epsilon is as large as the mean of squares
EPSILON = 1e-6


@random_shapes
@example(rows=3, channels=1, spread=1.0)
@example(rows=1, channels=8, spread=1e-3)
@given(rows=ROWS, channels=CHANNELS, spread=SPREAD)
def test_forward_and_the_recomputed_output(rows: int, channels: int, spread: float) -> None:
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    in_x = memory.copy(spread * float32_numbers(rng, rows, channels))
    x, weight = in_x.astype(np.float64), float32_numbers(rng, channels)
    in_weight, out, rstd = memory.copy(weight), memory.empty(rows, channels), memory.empty(rows)
    rmsnorm_forward(in_x, in_weight, EPSILON, out, rstd)

    def results() -> dict[str, Array]:
        return {
            "out": reference.rmsnorm_forward(x, weight, EPSILON),
            "rstd": reference.rms_normalised(x, EPSILON)[1],
        }

    expected, bounds = with_bounds(results)
    assert_close(out, expected["out"], bounds["out"], "out")
    assert_close(rstd, expected["rstd"], bounds["rstd"], "rstd")
    again = memory.empty(rows, channels)
    rmsnorm_apply(in_x, in_weight, rstd, again)
    assert_close(again, expected["out"], bounds["out"], "again")
    memory.check()


@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@example(rows=3, channels=1, spread=1.0)
@example(rows=1, channels=8, spread=1e-3)
@given(rows=ROWS, channels=CHANNELS, spread=SPREAD)
def test_backward(accumulate: bool, rows: int, channels: int, spread: float) -> None:
    """A gradient of the weight without elements is not computed, and the other is the same without it."""
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    in_x = memory.copy(spread * float32_numbers(rng, rows, channels))
    x, weight = in_x.astype(np.float64), float32_numbers(rng, channels)
    d_out, before = float32_numbers(rng, rows, channels), float32_numbers(rng, rows, channels)
    old = float32_numbers(rng, channels) if accumulate else np.zeros(channels)

    def results() -> dict[str, Array]:
        dx, d_weight = reference.rmsnorm_backward(d_out, x, weight, EPSILON)
        return {"dx": total(before, dx), "weight": total(old, d_weight)}

    expected, bounds = with_bounds(results)
    rstd = memory.copy(reference.rms_normalised(x, EPSILON)[1][:, 0])
    out_dx, out_weight, frozen_dx = memory.copy(before), memory.empty(channels), memory.copy(before)
    if accumulate:
        out_weight[...] = old
    in_d_out, in_weight = memory.copy(d_out), memory.copy(weight)
    rmsnorm_backward(in_d_out, in_x, in_weight, rstd, out_dx, out_weight, accumulate)
    assert_close(out_dx, expected["dx"], bounds["dx"], "dx")
    assert_close(out_weight, expected["weight"], bounds["weight"], "weight")
    rmsnorm_backward(in_d_out, in_x, in_weight, rstd, frozen_dx, out_weight[:0], accumulate)
    np.testing.assert_array_equal(frozen_dx, out_dx)
    memory.check()


def test_nan_stays_in_its_row() -> None:
    x = np.ones((3, 9), np.float32)
    x[1, 4] = np.nan
    out = np.empty_like(x)
    rmsnorm_forward(x, np.ones(9, np.float32), EPSILON, out, np.empty(3, np.float32))
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
