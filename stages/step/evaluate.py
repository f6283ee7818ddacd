"""The loss on the validation split, computed from a leased version while training continues."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from threadloom.pipeline import Arena, Cancelled, Lease
from threadloom.stages.data import fill_starts
from threadloom.stages.memory import Bank, Evaluation, Update
from threadloom.stages.step.compute import Compute, Version
from threadloom.stages.step.derived_embedding import EmbeddingFactors
from threadloom.stages.step.early_stopping import EarlyStopping
from threadloom.stages.step.evaluation_copy import EvaluationCopies
from threadloom.stages.step.gcd_loss import GcdLoss
from threadloom.stages.step.reducer import TrainingDiverged
from threadloom.stages.step.windows import Windows


@dataclass(frozen=True)
class Validation:
    """The windows of every evaluation, and those of the evaluation that ends the run."""

    windows: Windows
    final: Windows
    sets: Mapping[str, Windows] = field(default_factory=dict)
    """Those of every evaluation on the named validation sets."""


class ValidationLoss:
    """Computes losses in one slot and the logits of one chunk of rows, both allocated here."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._slot = compute.memory.allocate_evaluation_slot()
        self._logits = Arena({"logits": compute.memory.logits_shape})["logits"]
        self._aborted = False

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self._slot.nbytes + self._logits.nbytes

    def mean_loss(self, version: Version, windows: Windows) -> float:
        """Return the mean loss of the windows' target tokens that count, in nats. Raises `Cancelled` after `abort`."""
        return math.fsum(self.losses(version, windows, range(windows.micro_batches))) / windows.tokens

    def losses(self, version: Version, windows: Windows, micro_batches: Iterable[int]) -> list[float]:
        """Return the loss of each micro-batch, summed over its target tokens. Raises `Cancelled` after `abort`."""
        slot = self._slot
        sums = []
        for micro in micro_batches:
            if self._aborted:
                raise Cancelled
            windows.fill(0, micro, slot.ids, slot.targets)
            fill_starts(windows, 0, micro, slot.starts)
            self._compute.embed(version, slot)
            self._compute.forward(version, slot)
            sums.append(self._compute.loss(version, slot, self._logits))
        return sums

    def abort(self) -> None:
        """End a computation in another thread after its current micro-batch."""
        self._aborted = True


class EvaluateStage:
    """Evaluates the version that an update leased for it, and releases the lease."""

    def __init__(
        self,
        compute: Compute,
        validation: Validation,
        last_step: int,
        copies: EvaluationCopies,
        gcd: GcdLoss | None = None,
        factors: EmbeddingFactors | None = None,
        stopping: EarlyStopping | None = None,
    ) -> None:
        """`last_step` is evaluated on `validation.final`, every other step on `validation.windows`.

        Leases of `copies` have no packed weights, which are computed here, and their token embedding before them if
        that has `factors`. `gcd` adds its figure. `stopping` counts the losses.
        """
        self._factors = factors
        self._stopping = stopping
        self._gcd = gcd
        self._compute = compute
        self._copies = copies
        self._loss = ValidationLoss(compute)
        self._validation = validation
        self._last_step = last_step

    @property
    def nbytes(self) -> int:
        """Bytes allocated, with those of the copies."""
        return self._loss.nbytes + self._copies.nbytes

    def abort(self) -> None:
        """End the current evaluation with `Cancelled`, and the wait for it."""
        self._loss.abort()
        self._copies.abort()

    def __call__(self, update: Update) -> Evaluation:
        """Return the validation loss of version `update.step`; raise `TrainingDiverged` if it is not finite."""
        assert update.evaluation is not None, "only updates with a leased version reach this stage"
        return self.evaluate(update.evaluation, update.averaged)

    def evaluate(self, lease: Lease[Bank], averaged: Lease[Bank] | None = None) -> Evaluation:
        """Return the validation loss of a leased version, and of the average of the weights; release the leases.

        Raises as a call of the stage does.
        """
        begin = time.perf_counter()
        step = lease.version
        windows = self._validation.final if step == self._last_step else self._validation.windows
        sets = self._validation.sets
        loss, *of_sets = self._mean_losses(lease, [windows, *sets.values()], copied=self._copies.weights is not None)
        average = self._mean_losses(averaged, [windows], copied=True)[0] if averaged else None
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the validation loss after {step} updates is {loss}; expected a finite number. Hint: start a "
                "new run: lower optimizer.lr, lengthen schedule.warmup, or set precision=float32"
            )
        if self._stopping:
            self._stopping.take(step, loss)
        gcd = self._gcd.mean(windows) if self._gcd else None
        return Evaluation(
            step, loss, windows.tokens, time.perf_counter() - begin, gcd, average, dict(zip(sets, of_sets, strict=True))
        )

    def _mean_losses(self, lease: Lease[Bank], windows: Sequence[Windows], *, copied: bool) -> list[float]:
        """Return the mean losses of leased weights, and release them."""
        if copied:
            if self._factors:
                self._factors.compute(lease.bank)
            self._compute.pack_from_master(lease.bank, lease.bank.arena)  # frozen ones are those of all versions
        losses = [self._loss.mean_loss(lease.bank, each) for each in windows]
        lease.release()
        return losses
