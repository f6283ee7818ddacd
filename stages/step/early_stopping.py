"""Early stopping: the run ends after the evaluation with which its patience is exhausted (`evaluation.patience`).

The batch after an evaluation begins once its loss is known, so the last update is a function of the losses alone, at
any number of threads and in the replay. What counts are the evaluations every `evaluation.interval` updates; those
before a resumed run are read from its metrics.
"""

import math
from collections.abc import Mapping

from threadloom.pipeline import MonotonicCounter


class EarlyStopping:
    """The evaluations since the lowest validation loss. The stage `evaluate` counts them, the run's source waits."""

    def __init__(self, patience: int, interval: int, first: int, losses: Mapping[int, float]) -> None:
        """`losses` are those of evaluations up to step `first`, from which the run continues."""
        self._patience, self._interval, self._first = patience, interval, first
        self._best, self._best_step, self._since = math.inf, 0, 0  # written before the counter is advanced
        for step in sorted(losses):
            if step <= first:
                self._count(step, losses[step])
        self._decided = MonotonicCounter(first)

    def take(self, step: int, loss: float) -> None:
        """Count the evaluation of a step; each step once, in ascending order."""
        self._count(step, loss)
        self._decided.advance(step)

    def stops_at(self, step: int) -> bool:
        """Wait for the evaluation of a step that the run has computed; return True if the run ends with that step."""
        if step > self._first:
            self._decided.wait_for(step)
        return self._since >= self._patience

    @property
    def reason(self) -> str | None:
        """Why the run has stopped; None if it has not."""
        if self._since < self._patience:
            return None
        return (
            f"{self._since} evaluations have not lowered the validation loss of {self._best:.4f} after "
            f"{self._best_step:,} updates (evaluation.patience={self._patience})"
        )

    def abort(self) -> None:
        """Raise `Cancelled` in `stops_at`."""
        self._decided.abort()

    def _count(self, step: int, loss: float) -> None:
        if step % self._interval:  # the evaluation at the end of a run that was prolonged
            return
        if loss < self._best:
            self._best, self._best_step, self._since = loss, step, 0
        else:
            self._since += 1
