"""The parameters that AdamW for delayed gradients passes to its kernels."""

import math

import pytest

from tests.stages.support import build, tiny
from threadloom.stages.config import ResolvedOptimizer
from threadloom.stages.models import Geometry
from threadloom.stages.step.optimizers import ForecastAdamW, LeadAdamW

SETTINGS = ResolvedOptimizer(beta1=0.9, lead=0.7, clip=0.0)
GEOMETRY = Geometry(5, 2, 1, 1, 4)


def doubling(update: int) -> float:
    """A learning rate from which the update can be told."""
    return 2.0**update


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_the_horizon_is_the_sum_of_the_rates_of_the_next_updates(delay: int) -> None:
    """The version that update 5 makes is read by batch 6 + delay - 1, after as many updates as the delay."""
    step = ForecastAdamW(SETTINGS, doubling, GEOMETRY, delay=delay).step(batch=5, applied=5, grad_norm=1.0, scale=1.0)
    assert step.lr == 2.0**5
    assert step.horizon == sum(2.0**update for update in range(6, 6 + delay))


def test_a_step_without_forecast_has_no_horizon_and_the_first_one_no_lead() -> None:
    optimizer = LeadAdamW(SETTINGS, doubling, GEOMETRY)
    first = optimizer.step(batch=3, applied=0, grad_norm=1.0, scale=4.0)
    assert (first.lead, first.forecast_lead, first.horizon, first.grad_scale) == (0.0, 0.0, 0.0, 0.25)
    assert math.isclose(first.bias_correction1, 0.1)
    assert first.earlier_correction1 == 1.0
    second = optimizer.step(batch=4, applied=1, grad_norm=1.0, scale=4.0)
    assert second.lead == second.forecast_lead == 0.7, "as in the runs of earlier releases"
    assert math.isclose(second.earlier_correction1, first.bias_correction1)


def test_updates_of_synchronous_batches_have_neither_lead_nor_forecast() -> None:
    """Batches 0 to 2 have no delay, so versions 1 and 2 are read at once; version 3 - 1 by batches 3 and 4 too."""
    optimizer = ForecastAdamW(SETTINGS, doubling, GEOMETRY, delay=2, synchronous=3)
    steps = [optimizer.step(batch, applied=batch, grad_norm=1.0, scale=1.0) for batch in range(5)]
    assert [step.lead for step in steps] == [step.forecast_lead for step in steps] == [0.0, 0.0, 0.0, 0.7, 0.7]
    assert [step.horizon for step in steps] == [0.0, 0.0, 2.0**3 + 2.0**4, 2.0**4 + 2.0**5, 2.0**5 + 2.0**6]


def test_synchronous_updates_have_a_beta1_of_their_own() -> None:
    """Gradients of 1 have moments of 1 once these are corrected for their bias, whatever beta1 was before."""
    settings = ResolvedOptimizer(beta1=0.9, synchronous_beta1=0.5, lead=0.7, clip=0.0)
    optimizer = ForecastAdamW(settings, doubling, GEOMETRY, delay=2, synchronous=3)
    moment = 0.0
    for batch in range(6):
        step = optimizer.step(batch, applied=batch, grad_norm=1.0, scale=1.0)
        assert step.beta1 == (0.5 if batch < 3 else 0.9)
        if batch:
            assert math.isclose(moment / step.earlier_correction1, 1.0)
        moment = step.beta1 * moment + (1.0 - step.beta1)
        assert math.isclose(moment / step.bias_correction1, 1.0)


@pytest.mark.parametrize("overrides", [(), ('train.freeze=["wte"]',)], ids=["all", "frozen"])
def test_the_weights_that_the_optimizer_updates_begin_as_version_0(overrides: tuple[str, ...]) -> None:
    training = build(tiny("delay=2", *overrides))
    master = training.optimizer.master
    assert master is not None
    with training.banks.lease(0) as lease:
        assert master.flat.tobytes() == lease.bank.arena.flat.tobytes()
    assert master.flat.any()
