"""The choice of the optimizer."""

from collections.abc import Callable

from threadloom.stages.config import DelayCorrection, ResolvedConfig, learning_rate, rate_under_delay
from threadloom.stages.step.optimizers.adamw import AdamW
from threadloom.stages.step.optimizers.delayed_adamw import ForecastAdamW, LeadAdamW
from threadloom.stages.step.optimizers.optimizer import Optimizer


def create_optimizer(config: ResolvedConfig) -> Optimizer:
    """Return the optimizer of a configuration, without state for the tensors that it freezes."""
    arguments = config.optimizer, learning_rates(config), config.geometry(), config.frozen_tensors()
    match config.delay_correction:
        case DelayCorrection.NONE | DelayCorrection.WARMUP if not config.optimizer.rotation:
            return AdamW(*arguments)
        case DelayCorrection.NONE | DelayCorrection.WARMUP:  # with leads of 0, for the kernels of rotated bases
            return LeadAdamW(*arguments)
        case DelayCorrection.LEAD:
            return LeadAdamW(*arguments, synchronous=config.schedule.synchronous)
        case DelayCorrection.FORECAST | DelayCorrection.FORECAST_LEAD:
            return ForecastAdamW(*arguments, delay=config.delay, synchronous=config.schedule.synchronous)


def learning_rates(config: ResolvedConfig) -> Callable[[int], float]:
    """Return the function from the number of an update, counted from 0, to its learning rate."""
    schedule, peak, delay = config.schedule, config.optimizer.lr, config.delay

    def rate(update: int) -> float:
        return rate_under_delay(learning_rate(schedule, peak, update), delay, schedule.delay_warmup, update)

    return rate
