"""`optimizer.lr=auto` and `schedule.warmup=auto`."""

import math
from pathlib import Path

import msgspec
import pytest

from tests.stages.resolve.support import tiny
from threadloom.stages.config import Config, LoraConfig
from threadloom.stages.resolve import apply_overrides, load_config, resolve, resolved_from_json, to_json
from threadloom.stages.resolve.fine_tuning_rate import fine_tuning_rate
from threadloom.stages.resolve.learning_rate import RATE_RULE, RateRule, rate_summary, with_saved_rate

OPEN = ("optimizer.lr=auto", "schedule.warmup=auto")
RUN = Path(__file__).parent / "fixtures" / "run"


def asked(*overrides: str) -> Config:
    return apply_overrides(tiny(), overrides)


def rate_of(config: Config) -> tuple[float, int]:
    resolved = resolve(config, 2)
    return resolved.optimizer.lr, resolved.schedule.warmup


def test_the_rule_is_a_power_law() -> None:
    rule = RateRule(4e-3, -1.0, 0.5, -0.25, (32, 256), (256, 2048), (100, 20_000))
    assert rule.rate(128, 1024, 1000) == 4e-3
    assert rule.rate(256, 1024, 1000) == 2e-3
    assert rule.rate(128, 256, 1000) == 2e-3
    assert rule.rate(128, 1024, 16_000) == 2e-3
    assert rule.rate(128, 1024, 3000) == float(f"{4e-3 * math.exp(-0.25 * math.log(3)):.3g}")


def test_outside_of_its_range_the_rule_only_lowers_the_rate() -> None:
    rule = RateRule(4e-3, -1.0, 0.5, 0.25, (32, 256), (256, 2048), (100, 2000))
    assert rule.rate(8, 1024, 1000) == rule.rate(32, 1024, 1000)
    assert rule.rate(128, 10**6, 1000) == rule.rate(128, 2048, 1000)
    assert rule.rate(128, 1024, 10**6) == rule.rate(128, 1024, 2000)
    assert rule.rate(1024, 1024, 1000) == 5e-4
    assert rule.rate(128, 64, 1000) == 1e-3
    assert not rule.covers(8, 1024, 1000) and rule.covers(32, 256, 2000)


def test_explicit_values_keep_their_meaning() -> None:
    assert rate_of(asked()) == (1e-3, 0)
    assert rate_of(asked("optimizer.lr=0", "schedule.warmup=3")) == (0.0, 3)


def test_open_values_follow_the_rule_and_stay() -> None:
    config = asked(*OPEN, "batch_size=6", "gradient_accumulation_steps=4", "steps=500", "model.channels=64")
    expected = RATE_RULE.rate(64, 6 * 4 * 8, 500), 75
    assert rate_of(config) == expected
    resolved = resolve(config, 2)
    assert resolve(resolved, 2) == resolved
    assert resolved_from_json(to_json(resolved)) == resolved
    assert rate_of(msgspec.structs.replace(resolved, steps=4000)) == expected


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (("schedule.decay_steps=400",), 400),
        (("schedule.kind=linear", "schedule.decay_steps=400"), 400),
        (("schedule.kind=constant", "schedule.decay_steps=400"), 1000),
        ((), 1000),
    ],
)
def test_the_length_is_that_of_the_decay(overrides: tuple[str, ...], length: int) -> None:
    found = rate_of(asked(*OPEN, "steps=1000", *overrides))
    assert found == (RATE_RULE.rate(6, 96, length), round(0.15 * length))


@pytest.mark.parametrize(("delay", "warmup"), [(0, 15), (1, 25), (2, 50), (3, 50)])
def test_an_open_warmup_is_longer_with_a_delay(delay: int, warmup: int) -> None:
    assert rate_of(asked(*OPEN, "steps=100", f"delay={delay}")) == (RATE_RULE.rate(6, 96, 100), warmup)


def test_an_open_warmup_fits_any_decay() -> None:
    constant = asked(*OPEN, "schedule.kind=constant", "schedule.decay_steps=100", "steps=1000")
    assert rate_of(constant) == (RATE_RULE.rate(6, 96, 1000), 100)


def test_either_can_be_open_alone() -> None:
    assert rate_of(asked("optimizer.lr=auto", "schedule.warmup=4")) == (RATE_RULE.rate(6, 96, 10), 4)
    assert rate_of(asked("optimizer.lr=0.5", "schedule.warmup=auto", "steps=100")) == (0.5, 15)


def test_fine_tuning_has_rates_of_its_own() -> None:
    whole = msgspec.structs.replace(asked(*OPEN, "steps=200"), init="model")
    adapters = msgspec.structs.replace(whole, lora=LoraConfig(rank=2, targets=("all-linear",)))
    assert rate_of(whole) == (2e-3, 10)
    assert rate_of(adapters) == (8e-3, 10)
    assert rate_of(msgspec.structs.replace(whole, steps=3)) == (2e-3, 3)
    explicit = msgspec.structs.replace(asked("optimizer.lr=0.25", "schedule.warmup=7"), init="model")
    assert rate_of(explicit) == (0.25, 7)


@pytest.mark.parametrize(
    ("channels", "whole", "adapters"),
    [(1, 2e-3, 8e-3), (128, 2e-3, 8e-3), (256, 2e-3, 8e-3), (384, 5.1e-4, 2.1e-3), (576, 1.3e-4, 5.3e-4),
     (768, 5e-5, 2e-4), (4096, 5e-5, 2e-4)],
)  # fmt: skip
def test_wide_models_are_fine_tuned_at_the_usual_rate_and_narrow_ones_at_40_times_as_much(
    channels: int, whole: float, adapters: float
) -> None:
    assert fine_tuning_rate(channels, adapters=False) == whole
    assert fine_tuning_rate(channels, adapters=True) == adapters


def test_a_resumed_run_keeps_the_rate_that_it_began_with() -> None:
    saved = resolve(asked(*OPEN, "steps=100"), 2)
    longer = with_saved_rate(asked(*OPEN, "steps=1000"), saved)
    assert rate_of(longer) == (saved.optimizer.lr, 15)
    explicit = asked("optimizer.lr=0.5", "schedule.warmup=1")
    assert with_saved_rate(explicit, saved) == explicit


def test_files_of_earlier_releases_keep_their_rate() -> None:
    config = load_config(RUN)
    assert isinstance(config.optimizer.lr, float) and isinstance(config.schedule.warmup, int)
    assert rate_of(config) == (config.optimizer.lr, config.schedule.warmup)


@pytest.mark.parametrize(
    ("config", "resumed", "words"),
    [
        (asked("schedule.warmup=3"), False, "learning rate: 0.001, as configured; warm-up: 3 updates"),
        (asked("optimizer.lr=0.5"), True, "learning rate: 0.5, as when the run began; no warm-up"),
        (
            msgspec.structs.replace(asked(*OPEN, "steps=100"), init="model"), False,
            "learning rate: 0.002, the default for fine-tuning a model of width 6; warm-up: 10 updates",
        ),
        (
            asked(*OPEN, "model.channels=64", "model.context=64", "steps=1000"), False,
            (
                f"learning rate: {RATE_RULE.rate(64, 768, 1000):g}, by the rule for width 64, batches of 768 tokens "
                "and 1,000 updates; warm-up of the rule: 150 updates"
            ),
        ),
        (
            asked("optimizer.lr=auto", "model.channels=4096"), False,
            (
                f"learning rate: {RATE_RULE.rate(4096, 96, 10):g}, by the rule for width 4096, batches of 96 tokens "
                "and 10 updates, outside of the range of its fit; no warm-up"
            ),
        ),
    ],
)  # fmt: skip
def test_a_run_tells_its_learning_rate_and_where_it_comes_from(config: Config, resumed: bool, words: str) -> None:
    assert rate_summary(config, resolve(config, 2), resumed=resumed) == words
