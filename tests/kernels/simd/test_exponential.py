"""Accuracy of the polynomial exp and sigmoid, and of the row maximum; their results for NaN and infinity."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.error_bounds import EXPONENTIAL, SIGMOID
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.jit import jit_kernel
from threadloom.kernels.simd.exponential import exp32, row_max, sigmoid32


@jit_kernel
def all_exp(x: Floats, out: Floats) -> None:
    for i in range(x.size):
        out[i] = exp32(x[i])


@jit_kernel
def all_sigmoid(x: Floats, out: Floats) -> None:
    for i in range(x.size):
        out[i] = sigmoid32(x[i])


def test_exp_is_within_a_few_units_in_the_last_place() -> None:
    x = np.linspace(-87.3, 88.3, 400_001).astype(np.float32)
    out = np.full_like(x, np.nan)
    all_exp(x, out)
    expected = np.exp(x.astype(np.float64))
    assert np.max(np.abs(out / expected - 1.0)) < EXPONENTIAL


def test_exp_beyond_the_range_of_float32() -> None:
    x = np.array([-np.inf, -1e30, -87.4, 0.0, -0.0, 89.0, 1e30, np.inf, np.nan], np.float32)
    out = np.full_like(x, 5.0)
    all_exp(x, out)
    np.testing.assert_array_equal(out[:5], [0.0, 0.0, 0.0, 1.0, 1.0])
    assert (out[5:8] > 1e38).all()
    assert np.isnan(out[8])


def test_sigmoid_over_its_whole_range() -> None:
    x = np.concatenate([np.linspace(-87, 87, 100_001), [-1e30, 1e30, 0.0]]).astype(np.float32)
    out = np.full_like(x, np.nan)
    all_sigmoid(x, out)
    expected = 1.0 / (1.0 + np.exp(-x[:-3].astype(np.float64)))
    assert np.max(np.abs(out[:-3] / expected - 1.0)) < SIGMOID
    assert 0.0 <= out[-3] <= 2.0**-125, "less than at the smallest argument whose exponential is a normal number"
    np.testing.assert_array_equal(out[-2:], [1.0, 0.5])


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40), st.data())
def test_row_maximum(values: list[float], data: st.DataObject) -> None:
    row = np.array(values, np.float32)
    count = data.draw(st.integers(1, len(values)))
    assert row_max(row, count) == row[:count].max()


@pytest.mark.parametrize("position", [0, 3, 8])
def test_nan_is_the_maximum(position: int) -> None:
    row = np.arange(9, dtype=np.float32)
    row[position] = np.nan
    assert np.isnan(row_max(row, 9))
