"""The state of a training with a grown model: every version of the weights that is in flight, and the optimizer."""

import msgspec

from threadloom.pipeline import Arena
from threadloom.stages.checkpoint import AVERAGE, Checkpoint, TrainingState
from threadloom.stages.config import ResolvedConfig, SpikeAction
from threadloom.stages.models import EndOfText, Growth, parameter_shapes
from threadloom.stages.step.optimizers import FORECAST, MOMENTS
from threadloom.stages.storage import CONFIG_FILE
from threadloom.stages.tools.grow.request import Moments


def grown_state(
    checkpoint: Checkpoint, growth: Growth, moments: Moments, config: ResolvedConfig, end_of_text: EndOfText | None
) -> TrainingState:
    """Return the state of a checkpoint with the grown model; `config` is the configuration of the grown run.

    All versions, and the forecast of the weights if there is one, get the same noise and the same inserted layers, so
    their differences are those of the small model. Raises CheckpointError.
    """
    inserted, frozen = growth.inserted(), config.frozen_tensors()
    trained, grown = parameter_shapes(growth.small, frozen), parameter_shapes(growth.geometry, frozen)
    versions = {}
    for version in checkpoint.versions:
        newest = version == checkpoint.step
        weights = Arena(parameter_shapes(growth.small) if newest else trained)
        checkpoint.read_weights(version, weights)
        versions[version] = Arena(parameter_shapes(growth.geometry) if newest else grown)
        growth.write_weights(weights, versions[version], inserted)
    names = (*MOMENTS, *([FORECAST] if config.delay_correction.forecasts else []))
    averages = [AVERAGE] if config.optimizer.ema else []
    saved = [AVERAGE] if checkpoint.config["optimizer"].get("ema") else []
    small = {name: Arena(trained) for name in (*names, *saved)}
    optimizer = {name: Arena(grown) for name in (*names, *averages)}
    checkpoint.read_optimizer(small)
    if averages and not saved:
        small[AVERAGE] = weights  # the newest ones, with which it begins
    for name, target in optimizer.items():
        if name in (FORECAST, AVERAGE):
            growth.write_weights(small[name], target, inserted)
        elif moments is Moments.CARRY:
            growth.write_moments(small[name], target, MOMENTS[name])
        else:
            target.flat.fill(0.0)
    return TrainingState(
        step=checkpoint.step,
        delay=checkpoint.delay,
        versions=versions,
        optimizer=optimizer,
        config=msgspec.to_builtins(config),
        geometry=growth.geometry,
        scalers=checkpoint.scalers,
        guard=checkpoint.guard if config.guard.action is not SpikeAction.OFF else None,
        end_of_text=end_of_text,
        came_in=checkpoint.path / CONFIG_FILE,
    )
