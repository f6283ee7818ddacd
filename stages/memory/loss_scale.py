"""Loss scaling: a factor on the loss that keeps small gradients above the smallest number of a narrow format.

The backward pass starts from the gradient of scale × loss, so all gradients of a batch are larger by the scale; the
norm and AdamW's `grad_scale` divide it out. Powers of two are exact: in float32, a run with such a scale has the bits
of a run without, barring overflow and subnormal numbers. Any other scale costs one rounding.

An update whose loss or gradient is not finite is skipped: version k + 1 has the bits of version k, the moments are
unchanged, and the bias corrections count applied updates only, as when torch.amp.GradScaler skips `optimizer.step`. The
batch is consumed and the learning rate advances: both depend on the number of the update alone, not on overflows.

Dynamic scaling (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2; torch.amp.GradScaler): the scale is
multiplied by `growth` after `interval` consecutive finite updates, and by `backoff` when an update is skipped. With a
delay, batches with an older scale are in flight when it changes, and the rules become (at delay 0 they are those of
GradScaler):
    * backoff applies to the scale that overflowed: the up to τ further batches that overflow with the same scale do
      not lower it again;
    * only updates with the current scale or a higher one count towards growth, since a finite update with a lower
      scale does not show that the current one is safe.

Guarantee: the state after an update is a function of the earlier states and of which updates were finite. Each weight
bank carries the state of its version, so batch k, which reads version max(k - τ, 0), has one scale in all its
micro-batches, independent of threads and timing.
"""

import math
from dataclasses import dataclass, replace

from threadloom.stages.config import LossScaling, ResolvedLossScale

FLOOR = 2.0**-14
"""Lower bound of backoff: overflow at this scale has another cause. (fairseq's --min-loss-scale is 1e-4.)"""
CEILING = 2.0**24
"""Upper bound of growth: otherwise a period of zero gradients would leave a scale that takes long to come down.
(Apex's max_loss_scale.) An initial scale above it, or below the floor, is accepted."""
MAX_SKIPPED = 25
"""Consecutive skipped updates that end a run with a constant scale. Twice as many are allowed if the scale decreases:
a backoff close to 1 lowers it slowly, and no scale cures an overflow of the forward pass."""


@dataclass(frozen=True, slots=True)
class ScaleState:
    """The state of the scaler that belongs to one version of the weights."""

    scale: float = 1.0
    """Factor on the loss of the batches that read this version."""
    good: int = 0
    """Consecutive finite updates that count towards growth."""
    in_row: int = 0
    """Consecutive skipped updates up to this version."""
    skipped: int = 0
    """Total of skipped updates."""
    applied: int = 0
    """Total of applied updates, which Adam's bias corrections use; `applied` + `skipped` is the version."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for an impossible state: states are read from files too."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"a loss scale must be a finite number above 0, got {self.scale}")
        if min(self.good, self.in_row, self.skipped, self.applied) < 0 or self.in_row > self.skipped:
            raise ValueError(f"impossible counts in the state of a loss scaler: {self}")

    @property
    def version(self) -> int:
        """The version of the weights that the state belongs to."""
        return self.skipped + self.applied


@dataclass(frozen=True, slots=True)
class Scaled:
    """The loss scale of one update, and its outcome."""

    scale: float
    """The scale that its batch was computed with."""
    skipped: bool
    after: ScaleState
    """The state of the version that it produced."""


@dataclass(frozen=True)
class LossScaler:
    """The transition rules under given settings. Stateless."""

    settings: ResolvedLossScale

    @property
    def on(self) -> bool:
        """True if losses are scaled and updates that are not finite are skipped."""
        return self.settings.kind is not LossScaling.NONE

    def start(self, version: int, saved: ScaleState | None = None) -> ScaleState:
        """Return the state of a version that a run begins with; `saved` is the state in its checkpoint, if any."""
        if saved is not None and self.settings.kind is LossScaling.DYNAMIC:
            return saved
        counted = saved or ScaleState(applied=version)
        scale = self.settings.initial if self.on else 1.0
        return ScaleState(scale, 0, counted.in_row, counted.skipped, counted.applied)

    def after(self, state: ScaleState, used: float, finite: bool) -> ScaleState:
        """Return the successor of `state`, the newest, after an update whose batch had the scale `used`."""
        if not finite:
            scale = min(state.scale, self._lowered(used))
            return ScaleState(scale, 0, state.in_row + 1, state.skipped + 1, state.applied)
        scale, good = state.scale, state.good
        if self.settings.kind is LossScaling.DYNAMIC and used >= scale:
            good += 1
            if good >= self.settings.interval:
                scale, good = max(scale, min(scale * self.settings.growth, CEILING)), 0
        return ScaleState(scale, good, 0, state.skipped, state.applied + 1)

    def without(self, state: ScaleState) -> ScaleState:
        """Return the successor of `state` after an update that was left out though it was finite, or is not scaled."""
        return replace(state, skipped=state.skipped + 1)

    def failure(self, state: ScaleState, used: float) -> str | None:
        """Return why one more update that is not finite ends the run, or None if it is skipped.

        `state` and `used` are the arguments that `after` would get.
        """
        if not self.on:
            return "losses are not scaled"
        skipped = state.in_row + 1
        if self.settings.kind is LossScaling.DYNAMIC and self.settings.backoff < 1.0:
            if used <= FLOOR:
                return f"the loss scale is {used:g}, the lowest allowed"
            if used > state.scale or skipped < 2 * MAX_SKIPPED:  # a lower scale is in use already, or few were skipped
                return None
            return f"{skipped} consecutive updates overflowed, down to a loss scale of {used:g}"
        if skipped < MAX_SKIPPED:
            return None
        return f"{skipped} consecutive updates overflowed at a loss scale of {used:g}"

    @property
    def failure_hint(self) -> str:
        """The settings to change after `failure`, as text."""
        rate = "lower optimizer.lr, lengthen schedule.warmup, or set precision=float32"
        if self.settings.kind is LossScaling.STATIC:
            return f"lower loss_scale.initial, set loss_scale.kind=dynamic, {rate}"
        if self.settings.kind is LossScaling.DYNAMIC and self.settings.backoff == 1.0:
            return f"set loss_scale.backoff=0.5 so that the scale can decrease, {rate}"
        return rate

    def _lowered(self, used: float) -> float:
        """Return the scale after an overflow; a scale below the floor is unchanged."""
        if self.settings.kind is not LossScaling.DYNAMIC:
            return used
        return min(used, max(used * self.settings.backoff, FLOOR))
