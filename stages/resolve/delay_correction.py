"""The choice of the remedy for a delay, and of its strength."""

import msgspec

from threadloom.stages.config import Config, ConfigError, DelayCorrection, OptimizerConfig

_BETA1, _BETA1_WITH_LEAD = 0.9, 0.95
_LONG_DELAY, _LEAD_OF_LONG_DELAY = 2, 1.3
"""From this delay on the lead is larger than `beta1`: on nanoGPT's recipe 1.3 ended 0.004 to 0.013 below 0.95."""
_FORECAST_LEAD_OF_LONG_DELAY = 2.0
"""With it the five seeds of nanoGPT's recipe ended 0.007 below those whose forecast had the lead of the step."""
_DELAY_WARMUP = 400
_WITHOUT_DELAY = {
    DelayCorrection.FORECAST: DelayCorrection.NONE,
    DelayCorrection.FORECAST_LEAD: DelayCorrection.LEAD,
    DelayCorrection.WARMUP: DelayCorrection.NONE,
}
"""Equivalents at τ = 0, where a version is its own forecast."""


def with_delay_correction(config: Config) -> Config:
    """Return the configuration with a value for `delay_correction` and the settings that it decides.

    Raises ConfigError for a strength of a remedy that is not in use.
    """
    kind = config.delay_correction
    if kind is None:
        kind = DelayCorrection.FORECAST_LEAD if config.delay else DelayCorrection.NONE
    if not config.delay:
        kind = _WITHOUT_DELAY.get(kind, kind)
    optimizer, schedule = config.optimizer, config.schedule
    beta1 = optimizer.beta1
    if beta1 is None:
        beta1 = _BETA1_WITH_LEAD if kind.has_lead else _BETA1
    lead, warmup = 0.0, 0
    if kind.has_lead:
        lead = optimizer.lead if optimizer.lead is not None else _default_lead(config.delay, beta1)
    elif optimizer.lead:
        raise _unused("optimizer.lead", optimizer.lead, kind, "lead or forecast_lead")
    forecast_lead = lead
    if kind.forecasts:
        forecast_lead = _forecast_lead(config.delay, optimizer, kind, lead)
    elif optimizer.forecast_lead not in (None, lead):
        raise _unused("optimizer.forecast_lead", optimizer.forecast_lead, kind, "forecast or forecast_lead")
    if kind is DelayCorrection.WARMUP:
        warmup = _DELAY_WARMUP if schedule.delay_warmup is None else schedule.delay_warmup
    elif schedule.delay_warmup and config.delay:
        raise _unused("schedule.delay_warmup", schedule.delay_warmup, kind, "warmup")
    synchronous = schedule.synchronous if config.delay else 0
    if synchronous and kind is DelayCorrection.WARMUP:
        raise _unused("schedule.synchronous", synchronous, kind, "another one")
    early = optimizer.synchronous_beta1
    if not synchronous or not (kind.has_lead or kind.forecasts):
        early = beta1
    elif early is None:
        early = min(_BETA1, beta1)
    return msgspec.structs.replace(
        config,
        delay_correction=kind,
        optimizer=msgspec.structs.replace(
            optimizer, beta1=beta1, lead=lead, forecast_lead=forecast_lead, synchronous_beta1=early
        ),
        schedule=msgspec.structs.replace(schedule, delay_warmup=warmup, synchronous=synchronous),
    )


def _default_lead(delay: int, beta1: float) -> float:
    return _LEAD_OF_LONG_DELAY if delay >= _LONG_DELAY else beta1


def _forecast_lead(delay: int, optimizer: OptimizerConfig, kind: DelayCorrection, lead: float) -> float:
    if optimizer.forecast_lead is not None:
        return optimizer.forecast_lead
    given = optimizer.lead is not None  # also in the files of earlier releases, which have this lead in both places
    return _FORECAST_LEAD_OF_LONG_DELAY if kind.has_lead and delay >= _LONG_DELAY and not given else lead


def _unused(key: str, value: float, kind: DelayCorrection, needed: str) -> ConfigError:
    return ConfigError(
        key,
        expected=f"no value with delay_correction={kind.value}",
        got=f"{value:g}",
        hint=f"set delay_correction to {needed}, or leave {key} out",
    )
