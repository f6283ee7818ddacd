"""Checks of the settings of the schedule against one another, and against those of the optimizer and the model."""

from threadloom.stages.config import ConfigError, OptimizerConfig, ScheduleConfig, context_warmup


def check_schedule(schedule: ScheduleConfig, optimizer: OptimizerConfig, context: int) -> None:
    """Raise ConfigError for a schedule that cannot be followed; `context` is that of the model."""
    if optimizer.lr is not None and schedule.min_lr > optimizer.lr:
        raise ConfigError(
            "schedule.min_lr", expected=f"at most optimizer.lr = {optimizer.lr:g}", got=f"{schedule.min_lr:g}"
        )
    if schedule.decay_steps is not None and schedule.decay_steps < (schedule.warmup or 0):
        raise ConfigError(
            "schedule.decay_steps",
            expected=f"at least schedule.warmup = {schedule.warmup}",
            got=f"{schedule.decay_steps}",
        )
    context_warmup(schedule, context)
