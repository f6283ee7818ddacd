"""The protocol of an optimizer, and its application to a range of the master weights."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from threadloom.pipeline import Arena
from threadloom.stages.config import TensorRates
from threadloom.stages.memory import StepParameters, UpdateShard
from threadloom.stages.models import Geometry, decayed_elements, derived_tensors
from threadloom.stages.step.optimizers.average import WeightAverage
from threadloom.stages.step.optimizers.rotation import Rotation

MASTER = "weights"
"""Name of the weights in the state of an optimizer whose versions are forecasts."""
FORECAST = "forecast"
"""Name of the newest forecast in a checkpoint of such an optimizer; the weights are those of the model there."""


class Optimizer(Protocol):
    """An update rule with its state. Its kernels are element-wise, so shards may be updated in any order."""

    @property
    def state(self) -> Mapping[str, Arena]:
        """Running statistics of the gradient, each with the layout of the parameters; checkpoints have their names.

        They are in the order in which the kernels, which update them, take them.
        """

    @property
    def master(self) -> Arena | None:
        """The weights, an arena of `state`, if the versions are forecasts; None if the versions are the weights."""

    @property
    def average(self) -> WeightAverage | None:
        """The moving average of the weights; None without one."""

    @property
    def rotation(self) -> Rotation | None:
        """The bases in which matrices have their moments; None if all are the coordinates of the weights."""

    @property
    def rates(self) -> Mapping[str, TensorRates]:
        """The rates of each tensor; empty if all have the same but for weight decay, which matrices alone have."""

    @property
    def update(self) -> Callable[..., None]:
        """Kernel: ``update(old, new, gradient, *state, decayed, step)`` on flat arrays of equal length.

        The first `decayed` elements use weight decay. `old` and `new` may be one array.
        """

    @property
    def update_packed(self) -> Callable[..., None]:
        """Kernel: ``update_packed(old, new, gradient, *state, first_row, pair, step)`` on rows of a matrix.

        It has the bits of `update` with weight decay, and packs the new weights into `pair` (`PackedPair`, bfloat16).
        """

    def step(self, batch: int, applied: int, grad_norm: float, scale: float) -> StepParameters:
        """Return the parameters of the update from batch `batch`, after `applied` updates that were not skipped.

        `grad_norm` is the unscaled global norm; the gradient itself still contains the loss scale `scale`.
        """

    def step_of(self, step: Any, rates: TensorRates) -> Any:
        """Return the parameters of an update for a tensor with rates of its own; `step` is a result of `step`."""


def trained_elements(geometry: Geometry, layout: Arena) -> int:
    """Return the number of leading elements of an arena of updated tensors that the optimizer updates."""
    return min((layout.offset(name) for name in derived_tensors(geometry)), default=layout.flat.size)


class MasterUpdate:
    """Updates ranges of the float32 master weights, given as elements of the parameter arena."""

    def __init__(self, geometry: Geometry, gradient: Arena, optimizer: Optimizer) -> None:
        """`gradient` has the layout of the arena of trained parameters."""
        self._decayed = decayed_elements(geometry, gradient.keys())
        self._trained = trained_elements(geometry, gradient)
        self._gradient = gradient.flat
        self._optimizer = optimizer
        self._ranges = rate_ranges(gradient, optimizer.rates)

    def apply(self, shard: UpdateShard, start: int, stop: int) -> None:
        """Write the elements `start` … `stop` - 1 of the new version; a skipped update copies the old one.

        Tensors at the end of the arena that are computed from others are left out.
        """
        stop = min(stop, self._trained)
        if start >= stop:
            return
        part = slice(start, stop)
        old, new = shard.source.arena.flat[part], shard.target.arena.flat[part]
        if shard.skipped:
            np.copyto(new, old)
            return
        if not self._ranges:
            self._update(shard, start, stop, min(max(self._decayed - start, 0), stop - start), shard.step)
        for first, last, rates in self._ranges:
            if first < stop and start < last:
                begin, end = max(first, start), min(last, stop)
                self._update(shard, begin, end, end - begin, self._optimizer.step_of(shard.step, rates))

    def _update(self, shard: UpdateShard, start: int, stop: int, decayed: int, step: StepParameters) -> None:
        part = slice(start, stop)
        old, new = shard.source.arena.flat[part], shard.target.arena.flat[part]
        state = (arena.flat[part] for arena in self._optimizer.state.values())
        optimizer = self._optimizer
        optimizer.update(old, new, self._gradient[part], *state, decayed, step)
        if average := optimizer.average:
            weights = new if optimizer.master is None else optimizer.master.flat[part]
            average.take(average.arena.flat[part], weights, shard.target.scaler.applied)


def rate_ranges(layout: Arena, rates: Mapping[str, TensorRates]) -> list[tuple[int, int, TensorRates]]:
    """Return the ranges of elements of an arena that have the same rates, in order; none if `rates` is empty.

    The padding between two tensors belongs to the first one.
    """
    ranges: list[tuple[int, int, TensorRates]] = []
    for name, of_tensor in rates.items():
        start, stop = layout.offset(name), layout.offset(name) + layout[name].size
        if ranges:
            first, _, of_last = ranges[-1]
            ranges[-1] = first, start, of_last
            if of_last == of_tensor:
                start = ranges.pop()[0]
        ranges.append((start, stop, of_tensor))
    return ranges
