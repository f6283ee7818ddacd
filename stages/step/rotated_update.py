"""The stage `update` of AdamW in a rotated basis, in every number format.

A part is a range of rows of one matrix that is rotated on its columns, a whole matrix that is rotated on its rows, or
the range of the arena that is not rotated. Parts do not depend on the number of shards, so neither do the bits.
"""

import numpy as np

from threadloom.kernels import DelayedAdamWStep, Floats
from threadloom.kernels.float32 import rotated_adamw, rotated_adamw_forecast
from threadloom.pipeline import Pool, aligned_zeros
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory import MatrixRows, UpdateShard, balanced, rotated_parts, scratch_elements
from threadloom.stages.models import Geometry, Side, decayed_elements
from threadloom.stages.step.compute import Compute
from threadloom.stages.step.optimizers import MasterUpdate, Optimizer, trained_elements
from threadloom.stages.step.reducer import Gradient


def rotated_stage(
    config: ResolvedConfig, gradient: Gradient, optimizer: Optimizer, compute: Compute, shards: int
) -> "RotatedUpdate | None":
    """Return the stage of an optimizer in rotated bases; None for another optimizer."""
    if optimizer.rotation is None:
        return None
    return RotatedUpdate(config.geometry(), gradient, optimizer, compute, shards, config.threads.update)


class RotatedUpdate:
    """Applies the optimizer to a shard, and keeps packed weights up to date; a skipped update copies the old ones."""

    def __init__(
        self, geometry: Geometry, gradient: Gradient, optimizer: Optimizer, compute: Compute, shards: int, threads: int
    ) -> None:
        """Divide the parts into `shards`, of which at most `threads` are computed at once."""
        assert optimizer.rotation is not None, "the stage of an optimizer with bases"
        layout = gradient.arena
        self._rotation = optimizer.rotation
        self._optimizer, self._compute, self._gradient = optimizer, compute, layout
        self._rest = MasterUpdate(geometry, layout, optimizer)
        self._vectors = decayed_elements(geometry, layout.keys()), trained_elements(geometry, layout)
        shapes, sides = {name: view.shape for name, view in layout.items()}, self._rotation.sides
        parts, bases = rotated_parts(shapes, sides), self._rotation.bases
        self._shards = balanced(parts, lambda part: part.elements * len(part.matrix(bases)), shards)
        size = scratch_elements(shapes, sides)
        self._scratch = Pool([aligned_zeros(size, np.float32) for _ in range(threads)])

    @property
    def nbytes(self) -> int:
        """Bytes of scratch, and of the rotation beside its bases."""
        return self._scratch.total(lambda buffer: buffer.nbytes) + self._rotation.nbytes

    def abort(self) -> None:
        """Wake all that wait for scratch with `Cancelled`."""
        self._scratch.abort()

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version, packed weights included."""
        scratch = self._scratch.take()
        try:
            for part in self._shards[shard.shard]:
                self._update(part, shard, scratch)
            if shard.shard == 0:
                self._rest.apply(shard, *self._vectors)
        finally:
            self._scratch.give_back(scratch)
        return shard

    def _update(self, part: MatrixRows, shard: UpdateShard, scratch: Floats) -> None:
        old, new = part.of(shard.source.arena), part.of(shard.target.arena)
        if shard.skipped:
            np.copyto(new, old)
        else:
            optimizer, step = self._optimizer, shard.step
            if optimizer.rates:
                step = optimizer.step_of(step, optimizer.rates[part.name])
            assert isinstance(step, DelayedAdamWStep)
            self._apply(part, old, new, scratch, step, turns=shard.turns)
            if average := optimizer.average:
                weights = new if optimizer.master is None else part.of(optimizer.master)
                average.take(part.of(average.arena), weights, shard.target.scaler.applied)
        self._compute.pack_rows(shard.target.packed, part.name, part.layer, part.first, new)

    def _apply(
        self, part: MatrixRows, old: Floats, new: Floats, scratch: Floats, step: DelayedAdamWStep, *, turns: bool
    ) -> None:
        """Write the new weights of a part; with `turns` its moments are still in the bases before the newest ones."""
        rotation, state, master = self._rotation, self._optimizer.state, self._optimizer.master
        moments = part.of(state["m"]), part.of(state["v"])
        basis, turn = part.matrix(rotation.bases), part.matrix(rotation.turns)
        turn = turn if turns else turn[:0]
        columns = rotation.sides[part.name] is Side.COLUMNS
        rest = part.of(self._gradient), *moments, basis, turn, columns, scratch, step
        if master is None:
            rotated_adamw(old, new, *rest)
        else:
            rotated_adamw_forecast(part.of(master), new, *rest)
