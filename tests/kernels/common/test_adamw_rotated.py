"""AdamW in a rotated basis: in the basis of the weights it is AdamW with a lead and a forecast, bit for bit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.kernels.common.test_adamw_delayed import make_step
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from threadloom.kernels.common.adamw_delayed import adamw_forecast_update, adamw_lead_update
from threadloom.kernels.common.adamw_rotated import rotated_directions, rotated_forecast_update, rotated_update


@random_shapes
@given(
    size=st.integers(0, 130), t=st.integers(1, 3), grad_scale=st.sampled_from([1.0, 0.25]), in_place=st.booleans(),
    lead=st.sampled_from([0.0, 0.9]),
)  # fmt: skip
def test_without_a_turn_it_is_adamw_with_a_lead(
    size: int, t: int, grad_scale: float, in_place: bool, lead: float
) -> None:
    rng, memory, step = np.random.default_rng([size, t]), Guarded(), make_step(t, lead=lead, grad_scale=grad_scale)
    weights, gradient, m = (memory.copy(float32_numbers(rng, size)) for _ in range(3))
    v = memory.copy(float32_numbers(rng, size) ** 2)
    others = [memory.copy(array) for array in (weights, gradient, m, v)]
    new, expected = (weights if in_place else memory.empty(size)), memory.empty(size)
    adamw_lead_update(others[0], expected, others[1], others[2], others[3], size, step)
    rotated_directions(gradient, gradient[:0], m, v, step)
    rotated_update(weights, new, gradient, step)
    for found, wanted in ((new, expected), (m, others[2]), (v, others[3])):
        np.testing.assert_array_equal(found, wanted)
    memory.check()


@random_shapes
@given(size=st.integers(0, 130), t=st.integers(1, 3), forecast_lead=st.sampled_from([0.0, 0.9, 2.0]))
def test_without_a_turn_its_forecast_is_that_of_adamw(size: int, t: int, forecast_lead: float) -> None:
    rng, memory = np.random.default_rng([size, t]), Guarded()
    step = make_step(t, horizon=0.007, forecast_lead=forecast_lead)
    weights, gradient, m = (memory.copy(float32_numbers(rng, size)) for _ in range(3))
    v = memory.copy(float32_numbers(rng, size) ** 2)
    others = [memory.copy(array) for array in (weights, gradient, m, v)]
    forecast, expected, ahead = memory.empty(size), memory.empty(size), memory.empty(size)
    adamw_forecast_update(memory.empty(size), expected, others[1], others[2], others[3], others[0], size, step)
    rotated_directions(gradient, ahead, m, v, step)
    rotated_forecast_update(weights, forecast, gradient, ahead, step)
    for found, wanted in ((forecast, expected), (weights, others[0]), (m, others[2]), (v, others[3])):
        np.testing.assert_array_equal(found, wanted)
    memory.check()


@pytest.mark.parametrize("cut", [0, 1, 77, 300])
def test_same_bits_for_every_split(cut: int) -> None:
    rng, step = np.random.default_rng(5), make_step(3)
    inputs = [rng.standard_normal(300, np.float32) for _ in range(4)]
    inputs[3] *= inputs[3]
    results = []
    for ends in ([0, 300], [0, cut, 300]):
        w, g, m, v = (array.copy() for array in inputs)
        ahead, forecast = np.empty_like(w), np.empty_like(w)
        for start, stop in pairwise(ends):
            part = slice(start, stop)
            rotated_directions(g[part], ahead[part], m[part], v[part], step)
            rotated_forecast_update(w[part], forecast[part], g[part], ahead[part], step)
        results.append((w, g, m, v, forecast))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)
