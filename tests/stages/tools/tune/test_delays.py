"""The choice of the delay, from made-up speeds and costs."""

import pytest
from hypothesis import given, strategies as st

from threadloom.stages.resolve import DelayCost
from threadloom.stages.tools.tune.delays import DelaySpeed, choose_delay

COSTS = {delay: DelayCost(updates, loss=0.0, warmup=0.0) for delay, updates in ((0, 1.0), (1, 1.09), (2, 1.2))}


def test_a_delay_that_costs_more_updates_than_it_gains_is_not_chosen() -> None:
    choice = choose_delay([DelaySpeed(0, (100.0, 100.0)), DelaySpeed(1, (106.0, 104.0))], COSTS)
    assert choice.delay == 0
    assert choice.sentences() == [
        "do not pipeline: τ = 1 is 1.05 (1.04 to 1.06) times as fast and needs 1.09 times the updates"
    ]


def test_the_delay_with_the_least_time_is_chosen() -> None:
    speeds = [DelaySpeed(0, (100.0, 90.0)), DelaySpeed(1, (130.0, 117.0)), DelaySpeed(2, (160.0, 144.0))]
    choice = choose_delay(speeds, COSTS)
    assert choice.delay == 2
    first, second = choice.sentences()
    assert first == (
        "set delay=2: τ = 2 is 1.60 (1.60 to 1.60) times as fast and needs 1.20 times the updates, "
        "so it takes 0.75 of the time to the same loss"
    )
    assert second.startswith("τ = 1 is 1.30")


def test_one_round_in_which_a_delay_does_not_pay_is_enough_to_do_without() -> None:
    assert choose_delay([DelaySpeed(0, (100.0, 100.0)), DelaySpeed(1, (130.0, 108.0))], COSTS).delay == 0


@given(rates=st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1e6)), min_size=1, max_size=6))
def test_the_choice_never_takes_longer_in_any_round(rates: list[tuple[float, float, float]]) -> None:
    speeds = [DelaySpeed(delay, tuple(row[delay] for row in rates)) for delay in COSTS]
    choice = choose_delay(speeds, COSTS)
    for row in rates:
        assert COSTS[choice.delay].updates / row[choice.delay] <= COSTS[0].updates / row[0]


def test_updates_without_a_delay_have_the_speed_without_it() -> None:
    """Half of the updates take 1 s, the others 0.5 s: 0.75 s each."""
    free = {0: COSTS[0], 2: DelayCost(1.0, loss=0.0, warmup=0.5)}
    (row,) = choose_delay([DelaySpeed(0, (1.0,)), DelaySpeed(2, (2.0,))], free, synchronous=0.5).rows
    assert row.speed == pytest.approx(1.0 / 0.75)
    assert row.time == pytest.approx(0.75)


def test_rounds_must_be_comparable() -> None:
    with pytest.raises(ValueError, match="delay 0 first"):
        choose_delay([DelaySpeed(1, (1.0,))], COSTS)
    with pytest.raises(ValueError, match="as many rounds"):
        choose_delay([DelaySpeed(0, (1.0,)), DelaySpeed(1, (1.0, 2.0))], COSTS)
    assert choose_delay([DelaySpeed(0, (1.0,))], COSTS).sentences() == ["no delay was compared"]
