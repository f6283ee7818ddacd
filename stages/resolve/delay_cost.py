"""The price of a delay, as measured on the recipes of the lab book (docs/performance.md, "Delay")."""

from collections.abc import Mapping
from dataclasses import dataclass

from threadloom.stages.config import Config, DelayCorrection, ResolvedConfig


@dataclass(frozen=True)
class DelayCost:
    """The price of a delay, compared with none, on nanoGPT's recipe with the settings found for each."""

    updates: float
    """Updates to the same loss, as a multiple of those without a delay."""
    loss: float
    """Final loss above that without a delay after equal updates, in nats per token."""
    warmup: float
    """Share of the updates that has to be warm-up."""


DELAY_COSTS: Mapping[int, DelayCost] = {
    0: DelayCost(1.0, 0.0, warmup=0.0),
    1: DelayCost(1.0, 0.0, warmup=0.15),
    2: DelayCost(1.05, 0.010, warmup=0.35),
}
"""Delay → its cost with `delay_correction=forecast_lead`."""
ROTATED_DELAY_COSTS: Mapping[int, DelayCost] = {
    0: DelayCost(1.0, 0.0, warmup=0.0),
    1: DelayCost(1.0, 0.0, warmup=0.15),
    2: DelayCost(1.09, 0.018, warmup=0.15),
}
"""The same in rotated bases (`optimizer.rotation`), compared with τ = 0 in those, which ends far below AdamW."""
WITHOUT_CORRECTION: Mapping[int, float] = {1: 0.063, 2: 0.472}
"""Delay → final loss above that without a delay, with nanoGPT's own settings and `delay_correction=none`."""
FREE = 0.005
"""Loss below which a cost is less than the spread of two seeds."""


def delay_costs(config: Config) -> Mapping[int, DelayCost]:
    """Return delay → its cost with the optimizer of a configuration."""
    return ROTATED_DELAY_COSTS if config.optimizer.rotation else DELAY_COSTS


def delay_summary(config: ResolvedConfig) -> str:
    """Return a line on the delay of a run and its remedy."""
    kind, optimizer = config.delay_correction, config.optimizer
    strength = f", lead {optimizer.lead:g}, beta1 {optimizer.beta1:g}" if kind.has_lead else ""
    if kind.forecasts:
        strength += f", forecast lead {optimizer.forecast_lead:g}"
    reads = f"weights forecast {config.delay} updates ahead" if kind.forecasts else "weights as they were"
    first = config.schedule.synchronous
    start = f", after {first:,} updates without a delay" if first else ""
    return (
        f"delay {config.delay}: batch k reads version k - {config.delay}, {reads} "
        f"(delay_correction={kind.value}{strength}){start}"
    )


def delay_warning(config: ResolvedConfig) -> str | None:
    """Return a warning about the loss that the delay of a run costs; None if it is free as far as was measured."""
    delay, kind = config.delay, config.delay_correction
    if not delay:
        return None
    remedy = "compare with delay=0, or let `threadloom tune --goal loss=NUMBER` decide"
    if kind is not DelayCorrection.FORECAST_LEAD:
        if delay not in WITHOUT_CORRECTION or kind is not DelayCorrection.NONE:
            return f"the cost of delay={delay} with delay_correction={kind.value} has not been measured. Hint: {remedy}"
        return (
            f"without a correction delay={delay} ended {WITHOUT_CORRECTION[delay]:.2f} above delay=0 on nanoGPT's "
            f"recipe. Hint: set delay_correction=auto, or {remedy}"
        )
    costs = delay_costs(config)
    if delay not in costs:
        return f"the cost of delay={delay} has not been measured; up to {max(costs)} has. Hint: {remedy}"
    cost = costs[delay]
    if cost.loss < FREE:
        return None
    return (
        f"delay={delay} ended {cost.loss:.3f} above delay=0 after equal updates on nanoGPT's recipe, each with its "
        f"best settings, and needs {cost.updates:.2f} times the updates to the same loss.{_short_warmup(config, cost)} "
        f"Hint: {remedy}"
    )


def _short_warmup(config: ResolvedConfig, cost: DelayCost) -> str:
    """Return a sentence on a warm-up that is shorter than that of the measurement; "" if it is not."""
    schedule = config.schedule
    needed = round(cost.warmup * (schedule.decay_steps if schedule.kind.ends else config.steps))
    if schedule.warmup >= needed:
        return ""
    return (
        f" Those settings include a warm-up of {needed:,} updates; this run has one of {schedule.warmup:,}, and "
        "shorter ones lost more."
    )
