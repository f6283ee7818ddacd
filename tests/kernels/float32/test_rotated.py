"""The update of a matrix in a rotated basis, several updates long, with a turn to another basis, in float64."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.support import Guarded
from threadloom.kernels import DelayedAdamWStep
from threadloom.kernels.float32.rotated import rotated_adamw, rotated_adamw_forecast

Matrix = NDArray[np.float64]
LR, BETA1, BETA2, EPS, DECAY, LEAD, HORIZON, SCALE = 0.05, 0.9, 0.8, 0.1, 0.2, 0.7, 0.08, 0.5
EPS32 = float(np.finfo(np.float32).eps)


def step_of(t: int, forecast_lead: float) -> DelayedAdamWStep:
    first = t == 1
    return DelayedAdamWStep(
        lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY, bias_correction1=1 - BETA1**t,
        earlier_correction1=1.0 if first else 1 - BETA1 ** (t - 1), bias_correction2=1 - BETA2**t,
        lead=0.0 if first else LEAD, forecast_lead=0.0 if first else forecast_lead, horizon=HORIZON, grad_scale=SCALE,
    )  # fmt: skip


def orthogonal(rng: np.random.Generator, k: int) -> NDArray[np.float32]:
    return np.linalg.qr(rng.standard_normal((k, k)))[0].astype(np.float32)


@pytest.mark.parametrize("shape", [(37, 5), (5, 37), (9, 9), (33, 17)])
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("forecast_lead", [None, LEAD, 2.0])
def test_updates_and_turns_equal_a_float64_model(
    shape: tuple[int, int], columns: bool, forecast_lead: float | None
) -> None:
    """The model keeps its moments in the coordinates of the weights, and turns them to compare."""
    rng, memory = np.random.default_rng([*shape, columns]), Guarded()
    k = shape[1] if columns else shape[0]
    bases = [orthogonal(rng, k) for _ in range(2)]

    def turned(matrix: Matrix, basis: Matrix) -> Matrix:
        return matrix @ basis if columns else basis.T @ matrix

    weights = memory.copy(rng.standard_normal(shape))
    m, v, scratch = memory.copy(np.zeros(shape)), memory.copy(np.zeros(shape)), memory.empty(3 * weights.size)
    exact = weights.astype(np.float64)
    first, second = np.zeros(shape), np.zeros(shape)  # of the gradient, and of the rotated gradient
    for t in range(1, 6):
        basis = bases[t > 2]
        wide = basis.astype(np.float64)
        turn = (bases[0].T @ bases[1]) if t == 3 else basis[:0]
        gradient, step = memory.copy(rng.standard_normal(shape)), step_of(t, forecast_lead or 0.0)
        before, first = first, BETA1 * first + (1 - BETA1) * SCALE * gradient
        second = BETA2 * second + (1 - BETA2) * (SCALE * turned(gradient.astype(np.float64), wide)) ** 2
        size = np.sqrt(second / step.bias_correction2) + EPS

        def direction(lead: float, step: DelayedAdamWStep = step, size: Matrix = size, now: Matrix = first,
                      before: Matrix = before, wide: Matrix = wide) -> Matrix:  # fmt: skip
            change = (1 + lead) / step.bias_correction1 * now - lead / step.earlier_correction1 * before
            return turned(turned(change, wide) / size, wide.T)

        exact = exact * (1 - LR * DECAY) - LR * direction(step.lead)
        rest = gradient, m, v, basis, np.ascontiguousarray(turn), columns, scratch, step
        # At most 60 roundings and three products of k terms each update; numbers are below 10, divisors at least EPS.
        bound = t * (60 + 3 * k) * EPS32 * 10 / EPS * LR
        if forecast_lead is None:
            new = memory.empty(*shape)
            rotated_adamw(weights, new, *rest)
            weights = new
        else:
            forecast = memory.empty(*shape)
            rotated_adamw_forecast(weights, forecast, *rest)
            ahead = exact - HORIZON * direction(step.forecast_lead)
            assert np.abs(forecast - ahead).max() <= 3 * bound
        assert np.abs(weights - exact).max() <= bound
        assert np.abs(m - turned(first, wide)).max() <= t * (20 + 2 * k) * EPS32 * 10
        assert np.abs(v - second).max() <= t * (20 + 2 * k) * EPS32 * 10
    memory.check()
