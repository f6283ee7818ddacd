"""GELU in the tanh form."""

import numpy as np
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import allowed
from tests.kernels.comparison import assert_close, assert_within
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from threadloom.kernels.float32.gelu import gelu_backward, gelu_forward


@random_shapes
@given(rows=st.integers(1, 20), channels=st.integers(1, 150), spread=st.sampled_from([0.1, 1.0, 30.0]))
def test_forward_and_backward(rows: int, channels: int, spread: float) -> None:
    rng = np.random.default_rng([rows, channels])
    memory = Guarded()
    in_x = memory.copy(spread * float32_numbers(rng, rows, channels))
    x = in_x.astype(np.float64)  # what float32 made of it
    out, again = memory.empty(rows, channels), memory.empty(rows, channels)
    gelu_forward(in_x, out)
    d = float32_numbers(rng, rows, channels)
    bounds = allowed(lambda: {"y": reference.gelu_forward(x), "dx": reference.gelu_backward(d, x)})
    assert_close(out, reference.gelu_forward(x), bounds["y"])
    in_d = memory.copy(d)
    gelu_backward(in_x, in_d, again)
    assert_close(in_d, reference.gelu_backward(d, x), bounds["dx"])
    assert_close(again, reference.gelu_forward(x), bounds["y"])
    memory.check()


def test_far_from_zero_it_is_the_identity_or_nothing() -> None:
    x = np.array([[-1e4, -50.0, 0.0, 50.0, 1e4]], np.float32)
    out, d, again = np.empty_like(x), np.ones_like(x), np.empty_like(x)
    gelu_forward(x, out)
    gelu_backward(x, d, again)
    # s is 1 / (1 + e**-a): exactly 1/2 or 1, or below 2**-127 where the exponential ends (`EXP_HIGHEST`).
    size, slope = np.abs(x.astype(np.float64)), 1.6 + 0.22 * x.astype(np.float64) ** 2
    assert_within(out, np.array([[0.0, 0.0, 0.0, 50.0, 1e4]]), size * 2.0**-127)
    assert_within(d, np.array([[0.0, 0.0, 0.5, 1.0, 1.0]]), (1.0 + size * slope) * 2.0**-127)


def test_nan_stays_where_it_is() -> None:
    x = np.full((2, 40), 0.5, np.float32)
    x[1, 7] = np.nan
    out = np.empty_like(x)
    gelu_forward(x, out)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
