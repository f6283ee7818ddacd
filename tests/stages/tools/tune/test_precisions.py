"""The comparison of precisions that the user permits, with made-up speeds."""

import random

import pytest

from threadloom.stages.config import Precision
from threadloom.stages.tools.tune.command import PRECISIONS
from threadloom.stages.tools.tune.precisions import PrecisionRace, permitted, race_precisions
from threadloom.stages.tools.tune.search import Trial
from threadloom.stages.tools.tune.stage_shares import StageShares

FLOAT32, BF16, BF16X3, FP16 = Precision.FLOAT32, Precision.BF16, Precision.BF16X3, Precision.FP16
LOADS = (StageShares("backward", 2, 0.96, 0.03, 0.01),)


def raced(
    speeds: dict[Precision, float], noise: float = 0.0, budget: float = 100.0, cost: float = 1.0, seed: int = 1
) -> PrecisionRace:
    rng = random.Random(seed)

    def measure(precision: Precision) -> Trial:
        return Trial(1000.0 * speeds[precision] * rng.gauss(1.0, noise), cost, stages=LOADS)

    return race_precisions(FLOAT32, permitted(["any"], FLOAT32), measure, budget)


def test_the_values_of_the_option_are_those_of_the_setting() -> None:
    assert {*PRECISIONS, "auto"} == {precision.value for precision in Precision}


def test_only_permitted_precisions_are_compared() -> None:
    assert permitted([], FLOAT32) == ()
    assert permitted(["bf16", "float32"], FLOAT32) == (BF16,)
    assert permitted(["any"], FLOAT32) == (BF16X3, BF16, FP16)
    assert permitted(["any"], BF16) == (FLOAT32, BF16X3, FP16)


def test_the_fastest_is_chosen_with_its_figures() -> None:
    found = raced({FLOAT32: 1.0, BF16: 2.5, BF16X3: 1.4, FP16: 0.4})
    assert found.chosen is BF16
    assert found.reason == (
        "precision=bf16 ran at 2.50 times precision=float32 (quartiles 2.50 and 2.50), faster in 8 of 8 alternating "
        "pairs; before it, backward (2 threads) was busy 96% of the time"
    )


def test_the_one_that_is_asked_for_is_kept_unless_another_is_faster() -> None:
    found = raced({FLOAT32: 1.0, BF16: 0.9, BF16X3: 0.5, FP16: 0.4})
    assert found.chosen is FLOAT32
    assert found.reason == "precision=float32 is kept: precision=bf16 ran at 0.90 times its speed"
    kept = [raced(dict.fromkeys(Precision, 1.0), noise=0.05, seed=seed).chosen for seed in range(40)]
    assert kept.count(FLOAT32) >= 37


@pytest.mark.parametrize("cost", [0.5, 2.0, 9.0, 60.0])
def test_the_budget_is_kept(cost: float) -> None:
    found = raced({FLOAT32: 1.0, BF16: 2.5, BF16X3: 1.4, FP16: 0.4}, budget=60.0, cost=cost)
    assert found.seconds <= max(60.0, cost)
    if cost > 6:
        assert "too short" in found.reason
