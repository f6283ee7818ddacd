"""Successive halving, with made-up losses."""

import math

import pytest
from hypothesis import given, strategies as st

from threadloom.stages.tools.tune.halving import (
    LEAST_UPDATES,
    HalvingResult,
    Pilot,
    least_updates,
    most_candidates,
    rungs,
    successive_halving,
    updates_to_loss,
)


def pilot(candidate: float, updates: int, loss: float | None = None) -> Pilot[float]:
    """Return a pilot whose loss is lowest for candidate 3, and which takes a second per ten updates."""
    made_up = abs(candidate - 3.0) + 10.0 / math.log(updates) if loss is None else loss
    return Pilot(candidate, updates, made_up, updates / 10.0)


@given(candidates=st.integers(1, 40), updates=st.integers(0, 100_000))
def test_the_rungs_fit_into_the_updates(candidates: int, updates: int) -> None:
    plan = rungs(candidates, updates)
    assert sum(count * length for count, length in plan) <= updates
    if plan:
        assert plan[0][0] == candidates
        assert plan[-1][0] == 1
        assert all(length >= LEAST_UPDATES for _, length in plan)
        assert [length for _, length in plan] == sorted({length for _, length in plan})
    else:
        assert updates < LEAST_UPDATES * (sum(3**rung * -(-candidates // 3**rung) for rung in range(6)) + 1)


def test_the_best_candidates_get_longer_pilots() -> None:
    result = successive_halving([1.0, 2.0, 3.0, 4.0, 9.0], [(5, 30), (2, 90), (1, 270)], 1e9, pilot)
    assert result.best == 3.0
    assert result.complete
    assert [(p.candidate, p.updates) for p in result.pilots[5:]] == [(3.0, 90), (2.0, 90), (3.0, 270)]
    assert [p.updates for p in result.curve()] == [30, 90, 270]


@given(candidates=st.integers(3, 20), updates=st.integers(0, 20_000))
def test_fewer_candidates_are_compared_if_the_updates_are_few(candidates: int, updates: int) -> None:
    count = most_candidates(candidates, updates)
    assert bool(count) is (updates >= least_updates())
    assert not count or rungs(count, updates)
    assert count == candidates or not rungs(max(count + 1, 3), updates)


@given(budget=st.floats(0.0, 100.0))
def test_the_budget_is_obeyed_and_the_first_candidate_is_the_fallback(budget: float) -> None:
    result = successive_halving([1.0, 3.0], [(2, 30), (1, 90)], budget, pilot)
    spent = sum(p.seconds for p in result.pilots)
    assert spent <= max(budget, 3.0)  # the duration of the first pilot is unknown before it ran
    if len(result.pilots) < 2:
        assert result.best == 1.0
    assert result.complete is (len(result.pilots) == 3)


def test_a_pilot_that_diverges_loses_and_equal_losses_keep_the_order() -> None:
    def train(candidate: float, updates: int) -> Pilot[float]:
        return pilot(candidate, updates, math.inf if candidate == 1.0 else 2.0)

    assert successive_halving([1.0, 2.0, 3.0], [(3, 30), (1, 90)], 1e9, train).best == 2.0


def test_the_updates_to_a_loss_follow_the_logarithm_of_the_length() -> None:
    """Halving the distance on a logarithmic axis: 3.0 at 100 and 2.5 at 1,000 make 2.0 at 10,000."""
    curve = [pilot(1.0, 100, 3.0), pilot(1.0, 1000, 2.5)]
    assert updates_to_loss(curve, 2.0) == pytest.approx(10_000)
    assert updates_to_loss(curve, 2.75) == pytest.approx(10**2.5)
    assert updates_to_loss(curve[:1], 2.0) == math.inf
    rising = [pilot(1.0, 100, 2.5), pilot(1.0, 1000, 2.6)]
    assert updates_to_loss(rising, 2.0) == math.inf
    assert updates_to_loss(rising, 2.7) == 1000
    assert HalvingResult((*rising,), 1.0, True).curve() == rising
