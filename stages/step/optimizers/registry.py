"""The choice of the optimizer."""

from collections.abc import Callable

from threadloom.stages.config import OptimizerConfig
from threadloom.stages.models import Geometry
from threadloom.stages.step.optimizers.adamw import AdamW
from threadloom.stages.step.optimizers.optimizer import Optimizer


def create_optimizer(settings: OptimizerConfig, learning_rate: Callable[[int], float], geometry: Geometry) -> Optimizer:
    """Return the optimizer of a configuration; AdamW is the only one so far, so no setting selects it.

    `learning_rate` maps the number of an update, counted from 0, to its learning rate.
    """
    return AdamW(settings, learning_rate, geometry)
