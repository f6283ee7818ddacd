"""Clipping and AdamW: from the gradient of batch k to version k + 1 of the weights."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from threadloom import kernels
from threadloom.kernels import AdamWStep
from threadloom.pipeline import Arena, Banks, Lanes
from threadloom.stages.config import OptimizerConfig
from threadloom.stages.memory import Bank, LossScaler, ReduceShard, Scaled, Update, UpdateShard
from threadloom.stages.models import Geometry, decayed_elements, parameter_shapes
from threadloom.stages.step.reducer import Gradient, ShardPlan, TrainingDiverged


class Moments:
    """AdamW's running means of the gradient and of its square, after as many updates as there are versions."""

    def __init__(self, geometry: Geometry) -> None:
        shapes = parameter_shapes(geometry)
        self.m = Arena(shapes)
        self.v = Arena(shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.m.nbytes + self.v.nbytes


@dataclass(frozen=True)
class Optimizer:
    """AdamW with its learning-rate schedule: what the parameters of each update follow from."""

    settings: OptimizerConfig
    learning_rate: Callable[[int], float]
    """Learning rate of an update, by its number counted from 0."""

    def step(self, batch: int, applied: int, grad_norm: float, scale: float) -> AdamWStep:
        """Return the parameters of the update made from batch `batch`, after `applied` updates that were not skipped.

        `grad_norm` is the unscaled one, `scale` is still in the gradient. Clipping by global norm (Pascanu et al. 2013)
        and the bias corrections of Adam (Kingma & Ba 2015, Algorithm 1).
        """
        s = self.settings
        clip = s.clip / (grad_norm + 1e-6) if s.clip and grad_norm > s.clip else 1.0
        return AdamWStep(
            lr=self.learning_rate(batch),
            beta1=s.beta1,
            beta2=s.beta2,
            eps=s.eps,
            weight_decay=s.weight_decay,
            bias_correction1=1.0 - s.beta1 ** (applied + 1),
            bias_correction2=1.0 - s.beta2 ** (applied + 1),
            grad_scale=clip / scale,
        )


class Snapshot(Protocol):
    """What a checkpoint needs of the state between two updates."""

    def acquire(self) -> None:
        """Wait until the checkpoint before is written."""

    def hold(self) -> None:
        """Wait until the next update may write over what a checkpoint needs."""

    def take(self, step: int) -> None:
        """Keep what the update after `step` will write over."""


class Clip:
    """Meets the reduced shards, takes the global norm, and opens the update."""

    def __init__(
        self,
        banks: Banks[Bank],
        lanes: Lanes,
        gradient: Gradient,
        plan: ShardPlan,
        optimizer: Optimizer,
        scaler: LossScaler,
        snapshot: Snapshot | None,
    ) -> None:
        self._banks = banks
        self._lanes = lanes
        self._gradient = gradient
        self._plan = plan
        self._optimizer = optimizer
        self._scaler = scaler
        self._snapshot = snapshot
        self._write: tuple[Bank, Bank] | None = None  # what acquire() was given; one batch at a time is updated

    def acquire(self, shards: Sequence[ReduceShard]) -> None:
        """Free the lanes, then wait for a bank that the next version may be written to."""
        if not self._gradient.in_lane:
            self._lanes.mark_reduced(shards[0].batch)
        if self._snapshot:
            self._snapshot.hold()
        self._write = self._banks.begin()

    def __call__(self, shards: Sequence[ReduceShard]) -> Iterator[UpdateShard]:
        """Hand out the shards of the update; what is not finite is skipped where the loss is scaled, or refused."""
        assert self._write is not None
        source, target = self._write
        batch, loss, scale = shards[0].batch, shards[0].loss, shards[0].scale
        norm = self._gradient.norm() / scale
        finite = math.isfinite(norm) and math.isfinite(loss)
        before = source.scaler  # source and target may be one bank
        if not finite and (reason := self._scaler.hopeless(before, scale)):
            raise TrainingDiverged(
                f"the gradient of update {batch + 1} has norm {norm} (its loss was {loss:.4f}): needed a finite "
                f"number; {reason}. Likely {self._scaler.suspects}. Checkpoints from before are good"
            )
        target.scaler = self._scaler.after(before, scale, finite)
        scaled = Scaled(scale, not finite, target.scaler) if self._scaler.on else None
        step = self._optimizer.step(batch, before.applied, norm, scale)
        plan = self._plan
        return iter(
            [UpdateShard(batch, s, plan.span(s), source, target, step, loss, norm, scaled) for s in range(plan.shards)]
        )


class ApplyUpdate:
    """Applies AdamW to a shard: reads version k, writes version k + 1."""

    def __init__(self, geometry: Geometry, gradient: Gradient, moments: Moments) -> None:
        self._decayed = decayed_elements(geometry)
        self._gradient = gradient
        self._moments = moments

    def __call__(self, shard: UpdateShard) -> UpdateShard:
        """Write the shard's part of the new version and of the moments; a skipped update takes the old one over."""
        start, stop = shard.span
        part = slice(start, stop)
        if shard.skipped:
            np.copyto(shard.target.arena.flat[part], shard.source.arena.flat[part])
            return shard
        kernels.adamw_update(
            shard.source.arena.flat[part],
            shard.target.arena.flat[part],
            self._gradient.flat[part],
            self._moments.m.flat[part],
            self._moments.v.flat[part],
            min(max(self._decayed - start, 0), stop - start),
            shard.step,
        )
        return shard


Due = Callable[[int], bool]
"""Whether something is to be done after so many updates."""


class Publish:
    """Meets the updated shards, makes the new version readable, and leases it for what is due on it."""

    def __init__(
        self,
        banks: Banks[Bank],
        lanes: Lanes,
        gradient: Gradient,
        evaluation_due: Due,
        checkpoint_due: Due,
        snapshot: Snapshot | None,
    ) -> None:
        self._banks = banks
        self._lanes = lanes
        self._gradient = gradient
        self._evaluation_due = evaluation_due
        self._checkpoint_due = checkpoint_due
        self._snapshot = snapshot
        self._started = time.perf_counter()

    def acquire(self, shards: Sequence[UpdateShard]) -> None:
        """Wait until the checkpoint before is written, if one is due."""
        if self._snapshot and self._checkpoint_due(shards[0].batch + 1):
            self._snapshot.acquire()

    def __call__(self, shards: Sequence[UpdateShard]) -> Update:
        """Publish the new version; a due checkpoint takes what it needs before that."""
        first = shards[0]
        step = first.batch + 1
        save = self._snapshot is not None and self._checkpoint_due(step)
        if self._snapshot and save:
            self._snapshot.take(step)
        if self._gradient.in_lane:
            self._lanes.mark_reduced(first.batch)
        self._banks.publish()
        # No later version is begun before this stage returns, so these leases never wait.
        return Update(
            step=step,
            loss=first.loss,
            lr=float(first.step.lr),
            grad_norm=first.grad_norm,
            seconds=time.perf_counter() - self._started,
            scaled=first.scaled,
            evaluation=self._banks.lease(step) if self._evaluation_due(step) else None,
            checkpoint=self._banks.lease(step) if save else None,
        )
