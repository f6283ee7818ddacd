"""The stages that begin and end an update: from the gradient of batch k to version k + 1 of the weights.

Between them, the stage of `Compute.update_stage` applies the optimizer to the shards.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from threadloom.pipeline import Banks, Lanes
from threadloom.stages.config import GuardConfig
from threadloom.stages.memory import (
    Bank,
    BatchLoss,
    GuardState,
    LossScaler,
    ReduceShard,
    Scaled,
    SpikeGuard,
    Update,
    UpdateShard,
)
from threadloom.stages.step.derived_embedding import EmbeddingFactors
from threadloom.stages.step.evaluation_copy import EvaluationCopies
from threadloom.stages.step.gradient_noise import NoiseMeter
from threadloom.stages.step.optimizers import Optimizer
from threadloom.stages.step.reducer import Gradient, ShardPlan, TrainingDiverged
from threadloom.stages.step.saving import CheckpointSnapshot

Due = Callable[[int], bool]
"""Returns True if an evaluation or a checkpoint is due after the given number of updates."""


class Clip:
    """Gathers the reduced shards, computes the global norm, and begins the update."""

    def __init__(
        self,
        banks: Banks[Bank],
        lanes: Lanes,
        gradient: Gradient,
        plan: ShardPlan,
        optimizer: Optimizer,
        scaler: LossScaler,
        snapshot: CheckpointSnapshot | None,
        factors: EmbeddingFactors | None = None,
        guard: SpikeGuard | None = None,
        noise: NoiseMeter | None = None,
    ) -> None:
        self._noise = noise
        self._guard = guard or SpikeGuard(GuardConfig())
        self._factors = factors
        self._banks = banks
        self._lanes = lanes
        self._gradient = gradient
        self._plan = plan
        self._optimizer = optimizer
        self._scaler = scaler
        self._snapshot = snapshot
        self._write: tuple[Bank, Bank] | None = None  # set by acquire(); one batch at a time is updated
        self._read: Bank | None = None  # likewise; until the update, which writes next, it holds the batch's version

    def acquire(self, shards: Sequence[ReduceShard]) -> None:
        """Free the lanes, then wait for a bank that the next version may be written to."""
        if not self._gradient.in_lane:
            self._lanes.mark_reduced(shards[0].batch)
        if self._snapshot:
            self._snapshot.wait_writable()
        if self._factors:
            with self._banks.lease(self._banks.version_for(shards[0].batch)) as lease:
                self._read = lease.bank
        self._write = self._banks.begin()

    def __call__(self, shards: Sequence[ReduceShard]) -> Iterator[UpdateShard]:
        """Yield the shards of the update.

        One whose loss or norm is not finite, or a spike, is skipped, or `TrainingDiverged` is raised.
        """
        assert self._write is not None
        source, target = self._write
        batch, loss, scale = shards[0].batch, shards[0].loss, shards[0].scale
        if self._factors and self._read:
            self._factors.fold(self._gradient, self._read, scale)
        norm = self._gradient.norm() / scale
        finite = math.isfinite(norm) and loss.finite
        before = source.scaler  # read now: source and target may be the same bank
        spike = self._spike(batch, source.guard, loss, norm, scaled=self._scaler.on and not finite)
        target.guard = self._guard.after(source.guard, loss.mean, norm, skipped=spike is not None)
        if spike is None and not finite and (reason := self._scaler.failure(before, scale)):
            raise TrainingDiverged(
                f"the gradient of update {batch + 1} has norm {norm} (loss {loss}); expected a finite number. "
                f"{reason}. Hint: start a new run: {self._scaler.failure_hint}. Earlier checkpoints are unaffected"
            )
        target.scaler = self._scaler.without(before) if spike else self._scaler.after(before, scale, finite)
        scaled = Scaled(scale, not finite, target.scaler) if self._scaler.on else None
        noise = self._noise.noise(scale) if self._noise else None
        turns = finite and spike is None and self._renew_bases(before.applied)
        step = self._optimizer.step(batch, before.applied, norm, scale)
        plan = self._plan
        return iter(
            [
                UpdateShard(batch, s, plan.span(s), source, target, step, loss, norm, scaled, spike, noise, turns)
                for s in range(plan.shards)
            ]
        )

    def _renew_bases(self, applied: int) -> bool:
        """Use the bases that are due after `applied` updates; return True if so: moments are in those before."""
        rotation = self._optimizer.rotation
        if rotation is None or not rotation.is_due(applied):
            return False
        if applied:
            rotation.accept()
        else:
            rotation.start(self._gradient.arena)
        return True

    def _spike(self, batch: int, state: GuardState, loss: BatchLoss, norm: float, *, scaled: bool) -> str | None:
        """Return why an update is left out as a spike, or raise `TrainingDiverged` for one that ends the run.

        One that is not finite with a loss scale (`scaled`) is left to the scaler.
        """
        guard = self._guard
        reason = None if scaled else guard.spike(state, loss.mean, norm)
        if reason is None or (guard.skips and not guard.exhausted(state)):
            return reason
        settings = guard.settings
        many = f", the last of {state.in_row + 1} in a row (guard.most)" if guard.skips else ""
        other = "" if guard.skips else ", set guard.action=skip to leave such updates out"
        raise TrainingDiverged(
            f"update {batch + 1} is a spike{many}: {reason}, which is {settings.deviations:g} standard deviations over "
            f"the mean of the updates before it. Hint: start a new run from an earlier checkpoint (--init FOLDER) or "
            f"from the beginning: lower optimizer.lr or optimizer.clip, lengthen schedule.warmup{other}, or raise "
            "guard.deviations if the run was well"
        )


class Publish:
    """Gathers the updated shards, publishes the new version, and leases it for a due evaluation or checkpoint."""

    def __init__(
        self,
        banks: Banks[Bank],
        lanes: Lanes,
        gradient: Gradient,
        evaluation_due: Due,
        checkpoint_due: Due,
        snapshot: CheckpointSnapshot | None,
        copies: EvaluationCopies,
        factors: EmbeddingFactors | None = None,
    ) -> None:
        """Evaluations read the `copies` that there are instead of the new version, or in addition to it."""
        self._banks = banks
        self._lanes = lanes
        self._gradient = gradient
        self._copies = copies
        self._factors = factors
        self._evaluation_due = evaluation_due
        self._checkpoint_due = checkpoint_due
        self._snapshot = snapshot
        self._started = time.perf_counter()

    def acquire(self, shards: Sequence[UpdateShard]) -> None:
        """If a checkpoint or a copy to evaluate is due, wait until the previous one has been used."""
        if self._snapshot and self._checkpoint_due(shards[0].batch + 1):
            self._snapshot.acquire()
        if self._evaluation_due(shards[0].batch + 1):
            self._copies.acquire()

    def __call__(self, shards: Sequence[UpdateShard]) -> Update:
        """Publish the new version; if a checkpoint is due, take its snapshot before that."""
        first = shards[0]
        step = first.batch + 1
        if self._factors:
            self._factors.derive(first.target)
        save = self._snapshot is not None and self._checkpoint_due(step)
        if self._snapshot and save:
            self._snapshot.take(step)
        if self._gradient.in_lane:
            self._lanes.mark_reduced(first.batch)
        evaluate, copies = self._evaluation_due(step), self._copies
        copied = copies.weights.take(step) if copies.weights and evaluate else None
        averaged = copies.average.take(step) if copies.average and evaluate else None
        leases = iter(self._banks.publish_leased((evaluate and not copied) + save))
        return Update(
            step=step,
            loss=first.loss.mean,
            lr=float(first.step.lr),
            grad_norm=first.grad_norm,
            seconds=time.perf_counter() - self._started,
            counted=first.loss.counted,
            terms=first.loss.terms,
            scaled=first.scaled,
            spike=first.spike,
            noise=first.noise,
            evaluation=copied or (next(leases) if evaluate else None),
            averaged=averaged,
            checkpoint=next(leases) if save else None,
        )
