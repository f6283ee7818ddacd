"""SiLU(gate) * up in every number format, against float64."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import EXPONENTIAL, SIGMOID, gamma
from tests.kernels.bits16.formats import EVERY_FORMAT, FP16, Format
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import within
from tests.kernels.support import random_shapes
from tests.reference import Array
from threadloom.kernels.common.swiglu import swiglu_backward, swiglu_forward

EACH_FORMAT = pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)


def silu_errors(x: Array) -> tuple[Array, Array, Array]:
    """Return SiLU y = x s, its error, and that of its derivative s + y (e s), e = e**-x, so that e s = 1 - s.

    s is relatively off by `SIGMOID` and e by `EXPONENTIAL`; both end at about 2**-126. The factor 1.01 is for terms of
    second order.
    """
    s, rest = (np.exp(-np.logaddexp(0.0, sign * x)) for sign in (-1.0, 1.0))
    y, end = x * s, 2.0**-125 * (1.0 + np.abs(x))
    error = (SIGMOID + gamma(1)) * np.abs(y) + end
    second = np.abs(y) * rest
    slope_error = SIGMOID * s + (2.0 * SIGMOID + EXPONENTIAL + gamma(3)) * second + gamma(1) * (s + second) + end
    return y, 1.01 * error, 1.01 * slope_error


@EACH_FORMAT
@random_shapes
@given(
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 7, 33, 65, 130]),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    at_end=st.booleans(),
)
def test_forward_and_backward(fmt: Format, rows: int, width: int, spread: float, at_end: bool) -> None:
    rng = np.random.default_rng([rows, width])
    pages = Pages(at_end)
    gate_up, d = pages.copy(fmt.random(rng, rows, 2 * width, spread=spread)), pages.copy(fmt.random(rng, rows, width))
    kept, kept_d = gate_up.copy(), d.copy()
    out, again, d_gate_up = (pages.empty((rows, n), fmt.kind) for n in (width, width, 2 * width))
    swiglu_forward(gate_up, out)
    swiglu_backward(gate_up, d, d_gate_up, again)
    np.testing.assert_array_equal(gate_up, kept)
    np.testing.assert_array_equal(d, kept_d)

    exact, dy = fmt.numbers(gate_up), fmt.numbers(d)
    gate, up = np.split(exact, 2, axis=1)
    silu, error, slope_error = silu_errors(gate)
    expected = reference.swiglu_forward(exact)
    for found in (out, again):
        bound = np.abs(up) * error + gamma(1) * np.abs(expected)
        assert within(fmt.numbers(found), expected, 1.01 * bound + fmt.rounding(expected))

    expected = reference.swiglu_backward(dy, exact)
    errors = np.concatenate([np.abs(dy * up) * slope_error, np.abs(dy) * error], axis=1)
    bound = errors + gamma(2) * np.abs(expected)
    assert within(fmt.numbers(d_gate_up), expected, 1.01 * bound + fmt.rounding(expected))
    np.testing.assert_allclose(dy * silu, expected[:, width:], rtol=1e-12)


@EACH_FORMAT
def test_far_from_zero_it_is_the_identity_or_nothing(fmt: Format) -> None:
    """At the largest numbers of the format, too, where a sigmoid of 2**-126 would still count."""
    largest = 6e4 if fmt is FP16 else 3e38
    gate = fmt.nearest(np.array([-largest, -1e4, -89.0, -87.3, 0.0, 87.3, 1e4, largest]))
    x = fmt.numbers(gate)
    gate_up = np.concatenate([gate, fmt.nearest(np.ones(8))])[None]
    d = fmt.nearest(np.ones((1, 8)))
    out, again, d_gate_up = (np.zeros((1, n), fmt.kind) for n in (8, 8, 16))
    swiglu_forward(gate_up, out)
    swiglu_backward(gate_up, d, d_gate_up, again)
    end = np.where(x < -87.34, 0.0, 2.0**-125 * (1.0 + np.abs(x))) + fmt.tiny
    for found in (out, again, d_gate_up[:, 8:]):
        assert within(fmt.numbers(found)[0], np.maximum(x, 0.0), end)
    assert within(fmt.numbers(d_gate_up)[0, :8], np.where(x == 0.0, 0.5, x > 0.0), end)


@EACH_FORMAT
def test_nan_stays_where_it_is(fmt: Format) -> None:
    gate_up, nan = fmt.nearest(np.full((2, 80), 0.5)), np.zeros((2, 80), bool)
    nan[0, 7] = nan[1, 49] = True
    gate_up[nan] = fmt.nan
    d = fmt.nearest(np.ones((2, 40)))
    out, again, d_gate_up = (np.zeros((2, n), fmt.kind) for n in (40, 40, 80))
    swiglu_forward(gate_up, out)
    swiglu_backward(gate_up, d, d_gate_up, again)
    for found in (out, again, d_gate_up[:, :40]):
        np.testing.assert_array_equal(np.isnan(fmt.numbers(found)), nan[:, :40] | nan[:, 40:])
    np.testing.assert_array_equal(np.isnan(fmt.numbers(d_gate_up[:, 40:])), nan[:, :40])
