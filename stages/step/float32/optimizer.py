"""The stage `update` in float32."""

from threadloom.stages.memory import UpdateShard
from threadloom.stages.models import Geometry
from threadloom.stages.step import Gradient
from threadloom.stages.step.optimizers import MasterUpdate, Optimizer


class Float32Update:
    """Applies the optimizer to a shard: reads version k, writes version k + 1 and the optimizer's state."""

    def __init__(self, geometry: Geometry, gradient: Gradient, optimizer: Optimizer) -> None:
        self._master = MasterUpdate(geometry, gradient.arena, optimizer)

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version; a skipped update copies the old one."""
        self._master.apply(shard, *shard.span)
        return shard
