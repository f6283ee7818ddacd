"""The choice of the optimizer."""

from collections.abc import Callable, Set

from threadloom.stages.config import OptimizerConfig
from threadloom.stages.models import NONE_FROZEN, Geometry
from threadloom.stages.step.optimizers.adamw import AdamW
from threadloom.stages.step.optimizers.optimizer import Optimizer


def create_optimizer(
    settings: OptimizerConfig,
    learning_rate: Callable[[int], float],
    geometry: Geometry,
    frozen: Set[str] = NONE_FROZEN,
) -> Optimizer:
    """Return the optimizer of a configuration; AdamW is the only one so far, so no setting selects it.

    It has no state for the `frozen` tensors. `learning_rate` maps the number of an update, counted from 0, to its
    learning rate.
    """
    return AdamW(settings, learning_rate, geometry, frozen)
