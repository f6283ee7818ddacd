"""The choice of the remedy for a delay."""

import json

import pytest

from tests.stages.resolve.support import refusal, tiny
from threadloom.stages.config import DelayCorrection
from threadloom.stages.resolve.delay_correction import with_delay_correction
from threadloom.stages.resolve.delay_cost import DELAY_COSTS, FREE, ROTATED_DELAY_COSTS, delay_summary, delay_warning
from threadloom.stages.resolve.loading import apply_overrides, resolved_from_json, to_json
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.resolve.trajectory_settings import trajectory, trajectory_differences


@pytest.mark.parametrize(
    ("overrides", "kind", "beta1", "lead", "warmup"),
    [
        (["delay=0"], DelayCorrection.NONE, 0.9, 0.0, 0),
        (["delay=1"], DelayCorrection.FORECAST_LEAD, 0.95, 0.95, 0),
        (["delay=1", "optimizer.beta1=0.8"], DelayCorrection.FORECAST_LEAD, 0.8, 0.8, 0),
        (["delay=2"], DelayCorrection.FORECAST_LEAD, 0.95, 1.3, 0),
        (["delay=2", "optimizer.lead=3"], DelayCorrection.FORECAST_LEAD, 0.95, 3.0, 0),
        (["delay=2", "delay_correction=none"], DelayCorrection.NONE, 0.9, 0.0, 0),
        (["delay=2", "delay_correction=forecast"], DelayCorrection.FORECAST, 0.9, 0.0, 0),
        (["delay=1", "delay_correction=lead"], DelayCorrection.LEAD, 0.95, 0.95, 0),
        (["delay=2", "delay_correction=warmup"], DelayCorrection.WARMUP, 0.9, 0.0, 400),
        (["delay=0", "delay_correction=forecast_lead"], DelayCorrection.LEAD, 0.95, 0.95, 0),
        (["delay=0", "delay_correction=forecast"], DelayCorrection.NONE, 0.9, 0.0, 0),
        (["delay=0", "delay_correction=warmup", "schedule.delay_warmup=9"], DelayCorrection.NONE, 0.9, 0.0, 0),
    ],
)
def test_the_correction_and_its_strength_follow_from_the_delay(
    overrides: list[str], kind: DelayCorrection, beta1: float, lead: float, warmup: int
) -> None:
    config = resolve(apply_overrides(tiny(), overrides), 2)
    found = config.delay_correction, config.optimizer.beta1, config.optimizer.lead, config.schedule.delay_warmup
    assert found == (kind, beta1, lead, warmup)
    assert resolve(config, 2) == config


@pytest.mark.parametrize(
    ("overrides", "forecast_lead"),
    [
        (["delay=0"], 0.0),
        (["delay=1"], 0.95),
        (["delay=2"], 2.0),
        (["delay=2", "optimizer.lead=0.5"], 0.5),  # as in earlier releases, which had one lead
        (["delay=2", "optimizer.forecast_lead=0"], 0.0),
        (["delay=2", "delay_correction=forecast"], 0.0),
        (["delay=2", "delay_correction=forecast", "optimizer.forecast_lead=1"], 1.0),
        (["delay=2", "delay_correction=lead"], 1.3),  # not used
    ],
)
def test_the_forecast_has_a_lead_of_its_own(overrides: list[str], forecast_lead: float) -> None:
    config = resolve(apply_overrides(tiny(), overrides), 2)
    assert config.optimizer.forecast_lead == forecast_lead
    assert resolve(config, 2) == config


@pytest.mark.parametrize(
    ("overrides", "synchronous", "beta1"),
    [
        (["delay=2"], 0, 0.95),
        (["delay=2", "schedule.synchronous=3"], 3, 0.9),
        (["delay=1", "schedule.synchronous=3", "optimizer.beta1=0.8"], 3, 0.8),
        (["delay=1", "schedule.synchronous=3", "optimizer.synchronous_beta1=0.7"], 3, 0.7),
        (["delay=2", "schedule.synchronous=3", "delay_correction=none"], 3, 0.9),
        (["delay=0", "schedule.synchronous=3"], 0, 0.9),
    ],
)
def test_synchronous_updates_need_a_delay_and_have_the_beta1_of_plain_adamw(
    overrides: list[str], synchronous: int, beta1: float
) -> None:
    config = resolve(apply_overrides(tiny(), overrides), 2)
    assert (config.schedule.synchronous, config.optimizer.synchronous_beta1) == (synchronous, beta1)
    assert resolve(config, 2) == config
    named = {"schedule.synchronous", "optimizer.synchronous_beta1"} & trajectory(config).keys()
    assert ("schedule.synchronous" in named) is (synchronous > 0)
    assert ("optimizer.synchronous_beta1" in named) is (beta1 != config.optimizer.beta1)


def test_a_run_of_an_earlier_release_goes_on_with_its_one_lead() -> None:
    now = resolve(apply_overrides(tiny(), ["delay=2"]), 2)
    file = json.loads(to_json(now))
    del file["optimizer"]["forecast_lead"]
    earlier = resolved_from_json(json.dumps(file))
    resumed = resolve(earlier, 2)
    assert resumed.optimizer.forecast_lead == resumed.optimizer.lead == 1.3
    assert trajectory(resumed) == trajectory(earlier)
    assert "optimizer.forecast_lead" not in trajectory(earlier)
    assert trajectory_differences(trajectory(earlier), trajectory(now)) == {"optimizer.forecast_lead": (None, 2.0)}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["delay=2", "delay_correction=lead", "optimizer.forecast_lead=0.9"], "optimizer.forecast_lead"),
        (["delay=2", "delay_correction=forecast", "optimizer.lead=0.9"], "optimizer.lead"),
        (["delay=0", "optimizer.lead=0.9"], "optimizer.lead"),
        (["delay=2", "schedule.delay_warmup=9"], "schedule.delay_warmup"),
    ],
)
def test_the_strength_of_a_remedy_that_is_not_in_use_is_refused(overrides: list[str], key: str) -> None:
    with refusal(key):
        with_delay_correction(apply_overrides(tiny(), overrides))


def test_a_trajectory_names_the_correction_only_if_there_is_one() -> None:
    """Trajectories without a correction are those that earlier releases saved."""
    plain = trajectory(resolve(apply_overrides(tiny(), ["delay=1", "delay_correction=none"]), 2))
    assert not {"delay_correction", "optimizer.lead", "schedule.delay_warmup"} & plain.keys()
    corrected = trajectory(resolve(apply_overrides(tiny(), ["delay=1"]), 2))
    assert corrected["delay_correction"] == "forecast_lead"
    assert corrected["optimizer.lead"] == 0.95


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["delay=0"], None),
        (["delay=2", "delay_correction=none"], "ended 0.47 above delay=0"),
        (["delay=5"], "delay=5 has not been measured"),
        (["delay=1", "delay_correction=lead"], "delay_correction=lead has not been measured"),
    ],
)
def test_a_run_is_warned_of_what_its_delay_costs(overrides: list[str], words: str | None) -> None:
    warning = delay_warning(resolve(apply_overrides(tiny(), overrides), 2))
    assert warning is None if words is None else words in str(warning)


@pytest.mark.parametrize("delay", [1, 2])
def test_the_cost_of_the_default_remedy_is_told_unless_it_is_free(delay: int) -> None:
    warning, cost = delay_warning(resolve(apply_overrides(tiny(), [f"delay={delay}"]), 2)), DELAY_COSTS[delay]
    if cost.loss < FREE:
        assert warning is None
    else:
        assert f"{cost.loss:.3f} above" in str(warning)


def test_the_cost_in_rotated_bases_is_their_own() -> None:
    config = apply_overrides(tiny(), ["delay=2", "optimizer.rotation=5", "steps=100", "schedule.warmup=15"])
    warning, cost = str(delay_warning(resolve(config, 2))), ROTATED_DELAY_COSTS[2]
    assert f"{cost.loss:.3f} above" in warning
    assert "warm-up" not in warning


def test_the_line_on_a_delay_names_the_remedy_and_its_strength() -> None:
    line = delay_summary(resolve(apply_overrides(tiny(), ["delay=2"]), 2))
    assert line == (
        "delay 2: batch k reads version k - 2, weights forecast 2 updates ahead "
        "(delay_correction=forecast_lead, lead 1.3, beta1 0.95, forecast lead 2)"
    )
    line = delay_summary(resolve(apply_overrides(tiny(), ["delay=1", "delay_correction=none"]), 2))
    assert line == "delay 1: batch k reads version k - 1, weights as they were (delay_correction=none)"


@pytest.mark.parametrize(("warmup", "short"), [(0, True), (34, True), (35, False), (60, False)])
def test_a_warm_up_that_is_too_short_for_the_delay_is_told(warmup: int, short: bool) -> None:
    config = apply_overrides(tiny(), ["delay=2", "steps=100", f"schedule.warmup={warmup}"])
    warning = str(delay_warning(resolve(config, 2)))
    assert (f"a warm-up of 35 updates; this run has one of {warmup}" in warning) is short
