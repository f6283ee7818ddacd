"""Optimizers: one file each, with its state, its parameters per update, and its kernels.

An optimizer does not know which number format it runs in: `stages.step.float32` and `stages.step.bits16` call its
kernels on the parts of a shard.

May import: all above.
"""

from threadloom.stages.step.optimizers.adamw import MOMENTS as MOMENTS, AdamW as AdamW
from threadloom.stages.step.optimizers.average import WeightAverage as WeightAverage
from threadloom.stages.step.optimizers.delayed_adamw import ForecastAdamW as ForecastAdamW, LeadAdamW as LeadAdamW
from threadloom.stages.step.optimizers.optimizer import (
    FORECAST as FORECAST,
    MASTER as MASTER,
    MasterUpdate as MasterUpdate,
    Optimizer as Optimizer,
    trained_elements as trained_elements,
)
from threadloom.stages.step.optimizers.registry import (
    create_optimizer as create_optimizer,
    learning_rates as learning_rates,
)
from threadloom.stages.step.optimizers.rotation import Rotation as Rotation
