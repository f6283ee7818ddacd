"""AdamW with a lead and a forecast: against the reference, with equal bits for every split, and on a quadratic."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests import reference
from tests.error_bounds import gamma
from tests.kernels.comparison import assert_within
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from threadloom.kernels.common.adamw_delayed import DelayedAdamWStep, adamw_forecast_update, adamw_lead_update
from threadloom.kernels.compiling.arrays import Floats

LR, BETA1, BETA2, EPS, DECAY, LEAD = 3e-3, 0.95, 0.99, 1e-8, 0.1, 0.9


def make_step(
    t: int, horizon: float = 0.0, lead: float = LEAD, forecast_lead: float = LEAD, grad_scale: float = 1.0
) -> DelayedAdamWStep:
    return DelayedAdamWStep(
        lr=LR,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPS,
        weight_decay=DECAY,
        bias_correction1=1.0 - BETA1**t,
        earlier_correction1=1.0 - BETA1 ** (t - 1) if t > 1 else 1.0,
        bias_correction2=1.0 - BETA2**t,
        lead=lead if t > 1 else 0.0,
        forecast_lead=forecast_lead if t > 1 else 0.0,
        horizon=horizon,
        grad_scale=grad_scale,
    )


@pytest.mark.parametrize("forecasts", [False, True])
@random_shapes
@given(
    decayed=st.integers(0, 70), rest=st.integers(0, 70), grad_scale=st.sampled_from([1.0, 0.25]),
    lead=st.sampled_from([0.0, 0.9, 3.0]), forecast_lead=st.sampled_from([0.0, 0.9, 2.0]), in_place=st.booleans(),
)  # fmt: skip
def test_several_updates_equal_the_reference(
    forecasts: bool, decayed: int, rest: int, grad_scale: float, lead: float, forecast_lead: float, in_place: bool
) -> None:
    """The first elements decay, the others do not; the gradient is scaled first."""
    rng = np.random.default_rng([decayed, rest])
    memory = Guarded()
    size, horizon = decayed + rest, 2.5 * LR
    settings = reference.AdamW(LR, BETA1, BETA2, EPS, DECAY, decayed=("matrix",))
    parts = {"matrix": slice(0, decayed), "vector": slice(decayed, size)}
    start = float32_numbers(rng, size)
    exact = reference.Delayed(
        *({name: values[part] for name, part in parts.items()} for values in (start, start, start * 0.0, start * 0.0))
    )
    weights, m, v = memory.copy(start), memory.copy(np.zeros(size)), memory.copy(np.zeros(size))
    # Bounds as in test_adamw.py. The lead adds a product and a subtraction of terms that may cancel, so that the error
    # of the numerator is relative to the sizes of both terms; the forecast adds another product and a sum.
    sizes, path = np.zeros(size), np.zeros(size)
    for t in range(1, 5):
        gradient = float32_numbers(rng, size)
        step, copy, before = make_step(t, horizon, lead, forecast_lead, grad_scale), memory.copy(gradient), sizes
        if forecasts:
            forecast = memory.empty(size)
            adamw_forecast_update(memory.empty(size), forecast, copy, m, v, weights, decayed, step)
        else:
            forecast = weights if in_place else memory.empty(size)
            adamw_lead_update(weights, forecast, copy, m, v, decayed, step)
            weights = forecast
        grads = {name: grad_scale * gradient[part] for name, part in parts.items()}
        old = np.concatenate(list(exact.weights.values()))
        exact = reference.delayed_adamw(
            exact.weights, grads, exact.m, exact.v, t, settings, lead, horizon, forecast_lead
        )
        sizes = BETA1 * sizes + (1.0 - BETA1) * np.abs(grad_scale * gradient)
        largest = max(step.lead, step.forecast_lead)
        numerator = (1.0 + largest) / step.bias_correction1 * sizes + largest / step.earlier_correction1 * before
        scale = np.sqrt(np.concatenate(list(exact.v.values())) / step.bias_correction2) + EPS
        path = path + np.abs(old) + (LR + horizon) * numerator / scale
    expected = exact.forecast if forecasts else exact.weights
    for name, found, tensors, bound in (
        ("m", m, exact.m, gamma(20) * sizes),
        ("v", v, exact.v, gamma(32) * np.concatenate(list(exact.v.values()))),
        ("weights", weights, exact.weights, gamma(56) * path),
        ("forecast", forecast, expected, gamma(60) * path),
    ):
        assert_within(found, np.concatenate(list(tensors.values())), bound, name)
    memory.check()


@random_shapes
@given(cuts=st.lists(st.integers(0, 503), max_size=5), decayed=st.integers(0, 503), shift=st.integers(0, 15))
def test_same_bits_for_every_split_of_the_arena(cuts: list[int], decayed: int, shift: int) -> None:
    rng = np.random.default_rng(3)
    size, step = 503, make_step(3, horizon=2 * LR, grad_scale=0.3)
    inputs = [rng.standard_normal(size, np.float32) for _ in range(4)]
    inputs[3] *= inputs[3]

    def updated(ends: list[int], shift: int) -> list[Floats]:
        """Return weights, moments and forecast, and the weights of the kernel without one, updated part by part."""
        w, g, m, v = (np.concatenate([np.zeros(shift, np.float32), values])[shift:] for values in inputs)
        forecast, lead, other_m, other_v = np.full(size, np.nan, np.float32), np.empty_like(w), m.copy(), v.copy()
        for start, stop in pairwise(ends):
            part, inside = slice(start, stop), min(max(decayed - start, 0), stop - start)
            adamw_lead_update(w[part], lead[part], g[part], other_m[part], other_v[part], inside, step)
            adamw_forecast_update(lead[part], forecast[part], g[part], m[part], v[part], w[part], inside, step)
        return [w, m, v, forecast, lead, other_m, other_v]

    whole = updated([0, size], 0)
    for found, expected in zip(updated([0, *sorted(cuts), size], shift), whole, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(whole[0], whole[4])  # the forecast does not change the step
    np.testing.assert_array_equal(whole[1], whole[5])


def amplification(
    curvature: float, delay: int, beta1: float, lead: float, ahead: float, forecast: bool, updates: int
) -> float:
    """Return the growth of the distance to the minimum of a quadratic during the last half of `updates` updates.

    The second moment is held at 0 and epsilon is 1, so that `curvature` is that of the preconditioned problem times the
    learning rate; `ahead` is the lead of the forecast.
    """
    lr = 1e-2
    weights, m = np.full(1, 1.0, np.float32), np.zeros(1, np.float32)
    read = [weights.copy()]
    distances = []
    for update in range(updates):
        gradient = curvature / lr * read[max(len(read) - 1 - delay, 0)]
        step = DelayedAdamWStep(lr, beta1, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, lead, ahead, lr * delay * forecast, 1.0)
        forecasted = np.empty(1, np.float32)
        adamw_forecast_update(weights, forecasted, gradient, m, np.zeros(1, np.float32), weights, 0, step)
        read.append(forecasted if forecast else weights.copy())
        distances.append(abs(float(weights[0])))
        if update > delay and not 1e-12 < distances[-1] < 1e12:
            return math.inf if distances[-1] >= 1e12 else 0.0
    return max(distances[-50:]) / max(distances[updates // 2 : updates // 2 + 50])


@settings(max_examples=40, derandomize=True, deadline=None)
@given(delay=st.integers(0, 6), ratio=st.sampled_from([0.9, 0.97, 1.03, 1.1]))
def test_gradient_descent_with_a_delay_is_stable_up_to_the_limit_of_the_theory(delay: int, ratio: float) -> None:
    """Without momentum the largest stable step is 2 sin(pi / (4 tau + 2)) / curvature."""
    limit = 2.0 * math.sin(math.pi / (4 * delay + 2))
    growth = amplification(ratio * limit, delay, beta1=0.0, lead=0.0, ahead=0.0, forecast=False, updates=3000)
    assert (growth > 1.0) is (ratio > 1.0)


def largest_root(curvature: float, delay: int, beta1: float, lead: float, ahead: float, forecast: bool) -> float:
    """Return the largest modulus of a root of the characteristic polynomial of the delayed iteration.

    With y the forecast read, u = w / lr and gradient g = x y (x the curvature): m' = b m + (1 - b) g(k - tau),
    n' = m' + lead (m' - m), w' = w - n', y' = w' - tau (m' + ahead (m' - m)). The state is (w, m, y of the last tau + 1
    versions).
    """
    size = delay + 3
    matrix = np.zeros((size, size))
    read = size - 1  # the oldest forecast, which the gradient is computed at
    gradient, m = np.zeros(size), np.zeros(size)
    gradient[read], m[1] = curvature, 1.0
    new_m = beta1 * m + (1.0 - beta1) * gradient
    direction = new_m + lead * (new_m - m)
    weights = np.zeros(size)
    weights[0] = 1.0
    matrix[0] = weights - direction
    matrix[1] = new_m
    matrix[2] = matrix[0] - (delay * (new_m + ahead * (new_m - m)) if forecast else 0.0)
    for version in range(3, size):
        matrix[version, version - 1] = 1.0
    return float(np.abs(np.linalg.eigvals(matrix)).max())


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    curvature=st.floats(0.05, 4.0), delay=st.integers(1, 4), beta1=st.sampled_from([0.0, 0.5, 0.9, 0.95]),
    lead=st.sampled_from([0.0, 0.5, 0.95, 2.0]), ahead=st.sampled_from([0.0, 0.95, 2.0]), forecast=st.booleans(),
)  # fmt: skip
def test_a_remedy_is_stable_where_its_characteristic_polynomial_says_so(
    curvature: float, delay: int, beta1: float, lead: float, ahead: float, forecast: bool
) -> None:
    root = largest_root(curvature, delay, beta1, lead, ahead, forecast)
    if abs(root - 1.0) < 0.01:  # too slow to tell within a test
        return
    growth = amplification(curvature, delay, beta1, lead, ahead, forecast, updates=2000)
    assert (growth > 1.0) is (root > 1.0)


@pytest.mark.parametrize(
    ("delay", "beta1", "lead", "forecast", "edge"),
    [(0, 0.9, 0.0, False, 38.0), (1, 0.9, 0.0, False, 1.00), (2, 0.9, 0.0, False, 0.51), (2, 0.9, 0.9, False, 0.81),
     (2, 0.95, 0.95, False, 0.88), (2, 0.95, 0.95, True, 3.06)],
)  # fmt: skip
def test_forecast_and_lead_move_the_edge_of_stability_as_the_theory_says(
    delay: int, beta1: float, lead: float, forecast: bool, edge: float
) -> None:
    assert largest_root(0.98 * edge, delay, beta1, lead, lead, forecast) <= 1.0 + 1e-9
    assert largest_root(1.03 * edge, delay, beta1, lead, lead, forecast) > 1.0
