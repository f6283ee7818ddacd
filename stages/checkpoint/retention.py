"""Which checkpoints of a run are kept."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Retention:
    """The newest checkpoints, those of every so many updates, and the one with the lowest validation loss.

    One is removed when a newer one is written. The losses are in the metrics, so a resumed run keeps what an
    uninterrupted one keeps.
    """

    newest: int = 0
    """Number of newest checkpoints to keep. 0: all."""
    every: int = 0
    """Checkpoints after a multiple of this number of updates are kept too. 0: none."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Step → validation loss, of which the lowest is kept too; empty to keep none for its loss."""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative number."""
        if self.newest < 0 or self.every < 0:
            raise ValueError(f"keep: expected the number of checkpoints to keep, or 0 for all, got {self.newest}")

    def kept(self, steps: Sequence[int]) -> frozenset[int]:
        """Return those of the steps of checkpoints, in ascending order, that are kept."""
        if not self.newest:
            return frozenset(steps)
        chosen = {*steps[-self.newest :]}
        if self.every:
            chosen |= {step for step in steps if step % self.every == 0}
        best = self.best(steps)
        return frozenset(chosen if best is None else chosen | {best})

    def best(self, steps: Sequence[int]) -> int | None:
        """Return the step with the lowest loss, the first one of equals; None if no loss is known."""
        scored = [(self.losses[step], step) for step in steps if math.isfinite(self.losses.get(step, math.nan))]
        return min(scored)[1] if scored else None
