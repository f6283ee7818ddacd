"""The configuration of a grown run: that of the small one, with the larger model and a second warm-up.

Data, seed, batch size and delay stay, so the run goes on with the batch that the small one would have drawn next, and
with the versions of the weights that are in flight.
"""

import msgspec

from threadloom.stages.config import Config, ConfigError, ResolvedConfig, model_config_of, printable
from threadloom.stages.machine import thread_limit
from threadloom.stages.models import Geometry
from threadloom.stages.resolve import apply_overrides, resolve, with_threads_of_this_process
from threadloom.stages.tools.grow.request import GrowthRequest

REWARM = 100
"""Default number of updates of the second warm-up, at most half of those that are left."""

_CHANGEABLE = (
    "name", "steps", "micro_batch", "lanes", "shared_lanes", "recompute", "channel_capacity", "slots", "extra_banks",
    "pictures", "optimizer.", "schedule.", "threads.", "evaluation.", "checkpoint.", "trace.",
)  # fmt: skip
"""Settings, and sections, that do not contradict the state of the run."""


def grown_config(
    saved: Config, geometry: Geometry, step: int, request: GrowthRequest, origin: str, cores: int
) -> ResolvedConfig:
    """Return the configuration of the run that goes on after `step` updates with a model of the sizes `geometry`.

    `origin` names the checkpoint. Settings that `resolve` chose for the small model are chosen again for this machine;
    explicit ones keep their values. Raises ConfigError for a setting that cannot change, and if no update is left.
    """
    for override in request.overrides:
        _require_changeable(override)
    if saved.optimizer.rotation:
        raise ConfigError(
            "optimizer.rotation",
            expected="0, in a run that grows",
            got=f"{saved.optimizer.rotation}",
            cause="the moments of the small model are in the coordinates of its bases",
            hint="start a larger model from its weights: threadloom grow MODEL_FOLDER, then train --init",
        )
    model = msgspec.structs.replace(model_config_of(geometry), residual_scaling=saved.model.residual_scaling)
    config = msgspec.structs.replace(
        _with_choices_reopened(with_threads_of_this_process(saved, thread_limit()), cores),
        model=model,
        init="",
        grown_from=printable(f"{origin}: {request}"),
    )
    config = apply_overrides(config, request.overrides)
    if config.steps <= step:
        raise ConfigError(
            "steps",
            expected=f"more than the {step:,} updates that the checkpoint has",
            got=f"{config.steps:,}",
            cause="the run has made all of its updates",
            hint=f"pass --steps {2 * step}, or grow an earlier checkpoint of the run",
        )
    rewarm = min(REWARM, (config.steps - step) // 2) if request.rewarm is None else request.rewarm
    schedule = msgspec.structs.replace(config.schedule, rewarm=rewarm, rewarm_from=step if rewarm else 0)
    return resolve(msgspec.structs.replace(config, schedule=schedule), cores)


def _require_changeable(override: str) -> None:
    key = override.partition("=")[0].strip()
    if key in _CHANGEABLE or key.partition(".")[0] + "." in _CHANGEABLE:
        return
    raise ConfigError(
        key,
        expected="a setting that a run can change when it grows",
        got=override,
        cause="the state and the data of the run go on",
        hint=f"change {', '.join(name + '*' * name.endswith('.') for name in _CHANGEABLE)}; for the others start a "
        "new run from the grown weights with threadloom train --init",
    )


def _with_choices_reopened(saved: Config, cores: int) -> Config:
    """Return the configuration with the settings open that `resolve` chose for the size of the small model."""
    schedule, checkpoint = saved.schedule, saved.checkpoint
    if schedule.decay_steps == max(saved.steps, schedule.warmup or 0):
        schedule = msgspec.structs.replace(schedule, decay_steps=None)
    opened = msgspec.structs.replace(
        saved,
        micro_batch=None,
        lanes=None,
        shared_lanes=None,
        extra_banks=None,
        schedule=schedule,
        checkpoint=msgspec.structs.replace(checkpoint, copies=None),
    )
    again = resolve(opened, cores)
    split = {name: getattr(saved, name) for name in ("micro_batch", "lanes", "shared_lanes")}
    if any(getattr(again, name) != value for name, value in split.items()):
        opened = msgspec.structs.replace(opened, **split)
    if again.extra_banks != saved.extra_banks:
        opened = msgspec.structs.replace(opened, extra_banks=saved.extra_banks)
    if again.checkpoint.copies != checkpoint.copies:
        opened = msgspec.structs.replace(opened, checkpoint=checkpoint)
    return opened
