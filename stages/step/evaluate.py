"""The loss on the validation split, of a leased version, while training goes on."""

import math
import time
from typing import Protocol

from threadloom.pipeline import Arena
from threadloom.stages.data import BatchSource
from threadloom.stages.memory import Evaluation, Update
from threadloom.stages.step.compute import Compute, Version
from threadloom.stages.step.reducer import TrainingDiverged


class Windows(BatchSource, Protocol):
    """A fixed number of micro-batches to evaluate on."""

    @property
    def micro_batches(self) -> int:
        """How many there are."""

    @property
    def tokens(self) -> int:
        """Target tokens in all of them."""


class ValidationLoss:
    """Computes losses with memory of its own: one slot, and the logits of one chunk of rows."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._slot = compute.allocate_slot()
        self._logits = Arena({"logits": compute.logits_shape()})["logits"]

    @property
    def nbytes(self) -> int:
        """Bytes of its memory."""
        return self._slot.nbytes + self._logits.nbytes

    def mean_loss(self, version: Version, windows: Windows) -> float:
        """Return the mean loss of the windows' target tokens, in nats."""
        slot = self._slot
        sums = []
        for micro in range(windows.micro_batches):
            windows.fill(0, micro, slot.ids, slot.targets)
            self._compute.embed(version, slot)
            self._compute.forward(version, slot)
            sums.append(self._compute.loss(version, slot, self._logits))
        return math.fsum(sums) / windows.tokens


class EvaluateStage:
    """The stage: evaluates the version that an update leased for it, and lets go of it."""

    def __init__(self, compute: Compute, windows: Windows, final: Windows, last_step: int) -> None:
        """`windows` are those of every evaluation but that of `last_step`, which takes `final`."""
        self._evaluator = ValidationLoss(compute)
        self._windows = windows
        self._final = final
        self._last_step = last_step

    @property
    def nbytes(self) -> int:
        """Bytes of its memory."""
        return self._evaluator.nbytes

    def __call__(self, update: Update) -> Evaluation:
        """Return the validation loss of version `update.step`."""
        begin = time.perf_counter()
        lease = update.evaluation
        assert lease is not None, "only updates with a leased version reach this stage"
        windows = self._final if update.step == self._last_step else self._windows
        loss = self._evaluator.mean_loss(lease.bank, windows)
        lease.release()
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the validation loss after {update.step} updates is {loss}: needed a finite number. Likely a learning "
                "rate that is too high, or a precision that is too narrow; start a new run with a lower optimizer.lr, "
                "a longer schedule.warmup, or precision=float32"
            )
        return Evaluation(update.step, loss, windows.tokens, time.perf_counter() - begin)
