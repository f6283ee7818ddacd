"""Learning rates compared with hand-computed values and with nanoGPT."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.error_bounds import FLOAT64, gamma
from threadloom.stages.config.resolved import ResolvedSchedule
from threadloom.stages.config.schedule import learning_rate
from threadloom.stages.config.schedule_settings import Cooldown, ScheduleKind

Rate = Callable[[int], float]

ROUNDINGS = gamma(100, FLOAT64)
"""Relative difference of two rates. Each is the sum of at most two terms, of which the larger is at most 4 times the
result here; a term has a cosine, whose argument of at most π is off by three roundings, and eight operations more."""


def with_schedule(lr: float = 1.0, decay_steps: int = 1, **schedule: object) -> Rate:
    """Return the learning rate as a function of the update."""
    return partial(learning_rate, ResolvedSchedule(decay_steps=decay_steps, **schedule), lr)  # type: ignore[arg-type]


def rates(rate: Rate, *updates: int) -> list[float]:
    return [rate(update) for update in updates]


def nanogpt(it: int, lr: float, min_lr: float, warmup_iters: int, lr_decay_iters: int) -> float:
    """Return the rate of `get_lr` in nanoGPT's train.py, copied without its globals."""
    if it < warmup_iters:
        return lr * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    assert 0 <= decay_ratio <= 1
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (lr - min_lr)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 200), st.floats(1e-5, 1.0), st.floats(0.0, 1.0), st.integers(0, 400))
def test_cosine_equals_nanogpt(warmup: int, length: int, lr: float, part: float, update: int) -> None:
    rate = with_schedule(lr, warmup=warmup, decay_steps=warmup + length, min_lr=lr * part)
    assert rate(update) == nanogpt(update, lr, lr * part, warmup, warmup + length)


def test_cosine_end_points() -> None:
    rate = with_schedule(1e-3, warmup=100, decay_steps=2000, min_lr=1e-4)
    assert rates(rate, 0, 99, 100) == pytest.approx([1e-3 / 101, 1e-1 / 101, 1e-3], rel=ROUNDINGS)
    assert rate(1050) == pytest.approx(5.5e-4, rel=ROUNDINGS)
    assert rate(575) == pytest.approx(5.5e-4 + 4.5e-4 / math.sqrt(2), rel=ROUNDINGS)
    assert rates(rate, 2000, 2001, 10**9) == [1e-4, 1e-4, 1e-4]


def test_constant() -> None:
    rate = with_schedule(0.3, kind=ScheduleKind.CONSTANT, warmup=2, min_lr=0.1)
    assert rates(rate, 2, 3, 10**9) == [0.3, 0.3, 0.3]
    assert rates(rate, 0, 1) == pytest.approx([0.1, 0.2], rel=ROUNDINGS)


def test_linear() -> None:
    rate = with_schedule(1.0, kind=ScheduleKind.LINEAR, warmup=3, decay_steps=7, min_lr=0.5)
    assert rates(rate, *range(9)) == [0.25, 0.5, 0.75, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]


def test_step_decay_counts_from_the_end_of_the_warm_up_and_stops_at_the_floor() -> None:
    rate = with_schedule(8.0, kind=ScheduleKind.STEP, warmup=1, every=2, factor=0.5, min_lr=1.5)
    assert rates(rate, *range(9)) == [4.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.5, 1.5]
    never = with_schedule(8.0, kind=ScheduleKind.STEP, every=1, factor=0.0)
    assert rates(never, 0, 1, 10**6) == [8.0, 0.0, 0.0]


def test_warm_restarts() -> None:
    rate = with_schedule(1.0, kind=ScheduleKind.COSINE_RESTARTS, warmup=1, period=2, multiplier=2)
    half = (1 + math.sqrt(0.5)) / 2
    expected = [0.5, 1.0, 0.5, 1.0, half, 0.5, 1 - half, 1.0]  # warm-up, a cycle of 2, one of 4, the next begins
    assert rates(rate, *range(8)) == pytest.approx(expected, rel=ROUNDINGS)
    assert rates(rate, 1, 3, 7, 15, 31) == [1.0] * 5


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 500))
def test_warm_restarts_equal_a_simulation_of_the_cycles(period: int, multiplier: int, update: int) -> None:
    rate = with_schedule(2.0, kind=ScheduleKind.COSINE_RESTARTS, period=period, multiplier=multiplier, min_lr=0.5)
    t, length = 0, period
    for _ in range(update):
        t += 1
        if t == length:
            t, length = 0, length * multiplier
    assert rate(update) == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi * t / length)), rel=ROUNDINGS)


COOLDOWNS: dict[str, tuple[ScheduleKind, Cooldown, Callable[[float], float]]] = {
    "wsd": (ScheduleKind.WSD, Cooldown.SQRT, lambda r: 0.5 * (1 + math.cos(math.pi * r))),
    "linear": (ScheduleKind.CONSTANT_COOLDOWN, Cooldown.LINEAR, lambda r: 1 - r),
    "1-sqrt": (ScheduleKind.CONSTANT_COOLDOWN, Cooldown.SQRT, lambda r: 1 - math.sqrt(r)),
}


@pytest.mark.parametrize("name", COOLDOWNS)
@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 90), st.floats(0.01, 1.0), st.integers(0, 150))
def test_cooldowns_are_those_of_a_simulation(name: str, warmup: int, length: int, share: float, update: int) -> None:
    """Count the updates one by one, as transformers' `get_wsd_schedule` does from numbers of updates."""
    kind, cooldown, shape = COOLDOWNS[name]
    steps = warmup + length
    rate = with_schedule(
        2.0, kind=kind, cooldown=cooldown, warmup=warmup, decay_steps=steps, cooldown_share=share, min_lr=0.5
    )
    decay = min(round(share * steps), length)
    rates = [2.0 * (k + 1) / (warmup + 1) for k in range(warmup)] + [2.0] * (length - decay)
    rates += [0.5 + 1.5 * shape(k / decay) for k in range(decay)] + [0.5] * 150
    assert rate(update) == pytest.approx(rates[update], rel=ROUNDINGS)


def test_cooldown_end_points() -> None:
    common: dict[str, Any] = {"warmup": 1, "decay_steps": 10, "cooldown_share": 0.4}
    wsd = with_schedule(1.0, kind=ScheduleKind.WSD, **common)
    half = math.sqrt(0.5) / 2
    assert rates(wsd, *range(11)) == pytest.approx([0.5, *[1.0] * 6, 0.5 + half, 0.5, 0.5 - half, 0.0], abs=1e-15)
    linear = with_schedule(1.0, kind=ScheduleKind.CONSTANT_COOLDOWN, cooldown=Cooldown.LINEAR, **common)
    assert rates(linear, 5, 6, 7, 8, 9, 10) == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    never = with_schedule(1.0, kind=ScheduleKind.WSD, decay_steps=3, cooldown_share=0.0)
    assert rates(never, 0, 2, 3) == [1.0, 1.0, 0.0]


@settings(deadline=None)
@given(st.sampled_from(ScheduleKind), st.integers(0, 30), st.integers(0, 30), st.integers(0, 100))
def test_rates_stay_between_the_end_and_the_peak(kind: ScheduleKind, warmup: int, length: int, update: int) -> None:
    rate = with_schedule(0.7, kind=kind, warmup=warmup, decay_steps=warmup + length, min_lr=0.1, every=7, period=5)
    assert 0 < rate(update) <= 0.7 * (1 + ROUNDINGS)
    assert update < warmup or rate(update) >= 0.1


def test_a_second_warm_up_scales_the_rates_of_the_schedule() -> None:
    plain = with_schedule(1.0, kind=ScheduleKind.LINEAR, decay_steps=8)
    again = with_schedule(1.0, kind=ScheduleKind.LINEAR, decay_steps=8, rewarm=3, rewarm_from=2)
    expected = [1.0, 0.875, 0.75 / 4, 0.625 * 2 / 4, 0.5 * 3 / 4, 0.375, 0.25]
    assert rates(again, *range(7)) == pytest.approx(expected, rel=ROUNDINGS)
    assert rates(again, 0, 1, 5, 6) == rates(plain, 0, 1, 5, 6)


def test_negative_updates_are_rejected() -> None:
    with pytest.raises(ValueError, match="numbered from 0"):
        with_schedule()(-1)
