"""Resuming a run: its checkpoint, its configuration, and what may not change."""

import shlex
from dataclasses import replace
from pathlib import Path

import msgspec
from loguru import logger

from threadloom.stages.checkpoint import Checkpoint, latest_checkpoint, remove_leftovers
from threadloom.stages.config import (
    Config,
    ConfigError,
    Precision,
    ResolvedConfig,
    ResolvedSchedule,
    cooldown_start,
    learning_rate,
)
from threadloom.stages.resolve import (
    FLOAT32_PRECISIONS,
    is_precision_open,
    run_config_from_json,
    trajectory,
    trajectory_differences,
    with_saved_rate,
)
from threadloom.stages.storage import RunDirectory

_COOLDOWN = (
    "schedule.kind",
    "schedule.min_lr",
    "schedule.decay_steps",
    "schedule.cooldown_share",
    "schedule.cooldown",
)
"""Settings of the cooldown of a learning rate, which a resumed run may change until it begins."""


def last_checkpoint(run: RunDirectory, base: Path | None) -> Checkpoint | None:
    """Return the checkpoint that a resumed run continues from; None if it had made none yet.

    `base` is the folder of the frozen model of a run with adapters, if it has been moved; the run records it. Raises
    ConfigError if there is no such model, CheckpointError if it is another one, or the checkpoint is damaged.
    """
    for sentence in remove_leftovers(run.checkpoints):
        logger.info("{}: {}", run.checkpoints, sentence)
    path = latest_checkpoint(run.checkpoints)
    if path is None and base is not None:
        raise ConfigError(
            "--base",
            expected="a run with a checkpoint, which tells the model apart from others",
            got=f"none in {run.path / 'checkpoints'}",
            hint="start the run again: threadloom train --init FOLDER --overwrite",
        )
    if path is None:
        logger.warning("{} has no checkpoint yet: starting from the beginning", run.path)
        return None
    checkpoint = Checkpoint.open(path, base=base)
    if base is None:
        return checkpoint
    if checkpoint.base is None:
        raise ConfigError(
            "--base",
            expected="a run with adapters, whose model has been moved",
            got=f"one that trains the weights of a model, in {run.path}",
            hint="leave --base out",
        )
    return replace(checkpoint, base=checkpoint.base.moved_to(base))


def require_not_grown(config: Config) -> None:
    """Raise ConfigError if a new run has the configuration of a grown one, which continues the updates of another."""
    if config.grown_from:
        raise ConfigError(
            "grown_from",
            expected="nothing, in a run that starts from its first update",
            got=repr(config.grown_from),
            cause="the configuration is that of a run that threadloom grow has written",
            hint="continue that run with --resume --out RUN, start from its weights with --init RUN, or train the "
            "larger model from random weights with --set grown_from= --set schedule.rewarm=0",
        )


def require_grown_start(run: RunDirectory, config: Config, start: Checkpoint | None) -> None:
    """Raise ConfigError for a grown run without a checkpoint, which would start from random weights."""
    if config.grown_from and start is None:
        raise ConfigError(
            str(run.checkpoints),
            expected="the checkpoint of a grown run, or a later one",
            got="none",
            cause="it was removed",
            hint=f"grow the run again, from {config.grown_from}",
        )


def saved_config(out: Path) -> Config:
    """Return the resolved configuration of the run in `out`."""
    run = RunDirectory(out)
    try:
        return run_config_from_json(run.config.read_bytes(), str(run.config))
    except OSError as error:
        if run.checkpoint_steps():
            cause, remedy = "it was removed", "restore it, or start again with --overwrite"
        elif run.checkpoints.is_dir():
            cause, remedy = "the run was stopped before its first update", "leave out --resume to start it"
        else:
            cause, remedy = "there is no run in that folder", "give the folder that was passed to train --out"
        found = error.strerror or type(error).__name__
        raise ConfigError(
            str(run.config), expected="the configuration of a run", got=found, cause=cause, hint=remedy
        ) from error


def as_begun(config: Config, run: RunDirectory) -> Config:
    """Return the configuration with open settings that affect the weights as they were decided when the run began."""
    saved = saved_config(run.path)
    config = with_saved_rate(config, saved)
    if config.shared_lanes is None:  # saved by a version without shared lanes
        config = msgspec.structs.replace(config, shared_lanes=bool(saved.shared_lanes))
    if config.delay_correction is None:
        config = msgspec.structs.replace(config, delay_correction=saved.delay_correction)
    if not is_precision_open(config) or (
        config.precision is Precision.FLOAT32 and saved.precision not in FLOAT32_PRECISIONS
    ):
        return config
    return msgspec.structs.replace(
        config, precision=saved.precision, float32_matmul_precision=saved.float32_matmul_precision
    )  # the measured speeds may have changed


def same_trajectory(config: ResolvedConfig, run: RunDirectory, start: Checkpoint | None) -> ResolvedConfig:
    """Raise ConfigError if a resumed run would leave the trajectory of the saved one."""
    if start is None:
        return config
    if start.step > config.steps:
        raise ConfigError(
            "steps",
            expected=f"at least the {start.step} updates that the run in {run.path} has made",
            got=f"{config.steps}",
            cause="a run cannot be resumed at an earlier step",
            hint=f"give more than {start.step} steps, or start a new run with another --out",
        )
    saved = saved_config(run.path)
    differences = trajectory_differences(trajectory(saved), trajectory(config))
    if _before_cooldown(saved, config, start.step):
        differences = {key: pair for key, pair in differences.items() if key not in _COOLDOWN}
    if differences:
        changes = "; ".join(f"{key}: saved {old!r}, now {new!r}" for key, (old, new) in differences.items())
        raise ConfigError(
            next(iter(differences)),
            expected=f"the settings that the run in {run.path} was started with",
            got=changes,
            cause="these settings affect the weights, and the checkpoint was written with others",
            hint="resume with the same settings, or start a new run with another --out",
        )
    if warning := decay_warning(config, saved.steps, run.path):
        logger.warning("{}", warning)
    return config


def _before_cooldown(saved: Config, config: ResolvedConfig, step: int) -> bool:
    """Return True if no update so far has read a rate of the cooldown, neither of the saved run nor of the new one.

    A forecast reads those of the next τ updates.
    """
    if not (saved.schedule.kind.cools_down and config.schedule.kind.cools_down):
        return False
    saved_schedule = msgspec.convert(msgspec.to_builtins(saved.schedule), ResolvedSchedule)
    return step + config.delay <= min(cooldown_start(saved_schedule), cooldown_start(config.schedule))


def decay_warning(config: ResolvedConfig, saved_steps: int, run: Path) -> str | None:
    """Return a warning about updates after the end of the decay that a run with fewer, `saved_steps`, has now got."""
    schedule = config.schedule
    if not schedule.kind.ends or config.steps <= max(saved_steps, schedule.decay_steps):
        return None
    rate = learning_rate(schedule, config.optimizer.lr, config.steps - 1)
    return (
        f"the updates from {schedule.decay_steps:,} to {config.steps:,} have the learning rate {rate:g}, at which the "
        f"{schedule.kind.value} schedule of the run ends. schedule.decay_steps={schedule.decay_steps} cannot be "
        "changed, since it decides the weights. Hint: for another decay start a new run from these weights: "
        f"threadloom train --init {shlex.quote(str(run))} --out NEW"
    )
