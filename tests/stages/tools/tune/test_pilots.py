"""The learning rates that pilots compare, at the lengths of pilots and of the training."""

import msgspec
import pytest

from threadloom.stages.config import Config, Gpt2Config, OptimizerConfig, ScheduleConfig
from threadloom.stages.resolve import RATE_RULE, apply_overrides
from threadloom.stages.tools.tune.pilots import RateChoice, candidates

CONFIG = Config(
    name="tiny", model=Gpt2Config(context=8, layers=1, heads=2, channels=8), batch_size=4, steps=2000,
    optimizer=OptimizerConfig(lr=1e-2), schedule=ScheduleConfig(warmup=100, min_lr=1e-3),
)  # fmt: skip


def test_a_pilot_has_the_rate_of_the_rule_for_its_length() -> None:
    choice = RateChoice(4e-3, 0.1, 2000)
    at_length, pilot = choice.applied(CONFIG, 2000), choice.applied(CONFIG, 250)
    assert at_length.optimizer.lr == pytest.approx(4e-3)
    assert pilot.optimizer.lr == pytest.approx(4e-3 * (250 / 2000) ** RATE_RULE.updates)
    assert (pilot.steps, pilot.schedule.warmup, pilot.schedule.decay_steps) == (250, 25, 250)


def test_the_rate_is_never_below_the_end_of_the_decay() -> None:
    assert RateChoice(1e-4, 0.1, 2000).applied(CONFIG, 2000).optimizer.lr == 1e-3


def test_fine_tuning_does_not_follow_the_rule() -> None:
    tuned = msgspec.structs.replace(CONFIG, init="model")
    assert RateChoice(4e-3, 0.1, 2000).applied(tuned, 250).optimizer.lr == 4e-3


def test_the_first_candidate_is_the_configurations_own() -> None:
    assert candidates(CONFIG)[0] == RateChoice(1e-2, 0.05, 2000)
    opened = candidates(apply_overrides(CONFIG, ["optimizer.lr=auto", "schedule.warmup=auto"]))
    assert opened[0] == RateChoice(RATE_RULE.rate(8, 32, 2000), 0.15, 2000)
    assert len(set(opened)) == len(opened)
