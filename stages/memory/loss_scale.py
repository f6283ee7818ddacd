"""Loss scaling: the factor on the loss that keeps small gradients above a narrow format's smallest number.

Backward begins with the gradient of scale × loss, so all gradients of a batch are scale times too large; the norm and
AdamW's `grad_scale` take the factor out again. Powers of two come out exactly: in float32 a run with one has the bits
of a run without, short of overflow and of numbers below float32's smallest normal one. Any other costs a rounding.

An update whose loss or gradient is not finite is skipped: version k + 1 has the bits of version k, the moments stay,
and the bias corrections count applied updates only, as where torch.amp.GradScaler leaves `optimizer.step` out. The
batch is used up and the learning rate moves on: both follow from the number of the update alone, so that neither
depends on how often it overflowed.

Dynamic scaling (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2; torch.amp.GradScaler): the scale is
multiplied by `growth` after `interval` finite updates in a row, and by `backoff` when one is skipped. With a delay,
batches of an older scale are still under way when it changes, and the rules are read as follows (at delay 0 they are
GradScaler's own):
    * backoff counts from the scale that overflowed: the τ batches that overflow after the first with the same scale
      lower it no further;
    * only updates made with the current scale or a higher one count towards growth: those made with a lower one say
      nothing about it.

Guarantee: the state after an update is a function of the states before it and of what was finite, nothing else. Each
weight bank carries the state of its version, so batch k, which reads version max(k - τ, 0), has one scale in all its
micro-batches, whatever the threads.
"""

import math
from dataclasses import dataclass

from threadloom.stages.config import LossScaling, ResolvedLossScale

FLOOR = 2.0**-14
"""Backoff ends here; what overflows even then is no matter of scale. (fairseq's --min-loss-scale is 1e-4.)"""
CEILING = 2.0**24
"""Growth ends here, or gradients that are zero for a while would leave a scale that takes long to come down again.
(Apex's max_loss_scale.) An initial scale above it, or below the floor, is taken as it is."""
PATIENCE = 25
"""Updates skipped in a row after which a scale that does not change is given up; twice as many where it is lowered,
which a backoff close to 1 does too slowly, and which cures no overflow of the forward pass."""


@dataclass(frozen=True, slots=True)
class ScaleState:
    """The scaler after so many updates; belongs to one version of the weights."""

    scale: float = 1.0
    """What the loss of the batches that read this version is multiplied with."""
    good: int = 0
    """Finite updates in a row that count towards growth."""
    in_row: int = 0
    """Updates skipped in a row, up to this version."""
    skipped: int = 0
    """Updates skipped in all."""
    applied: int = 0
    """Updates made in all, which Adam's bias corrections count; with `skipped` it adds up to the version."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for numbers that no run can have come to: states are read from files too."""
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"a loss scale must be a finite number above 0, got {self.scale}")
        if min(self.good, self.in_row, self.skipped, self.applied) < 0 or self.in_row > self.skipped:
            raise ValueError(f"a loss scaler cannot have counted so: {self}")

    @property
    def version(self) -> int:
        """The version of the weights that it belongs to."""
        return self.skipped + self.applied


@dataclass(frozen=True, slots=True)
class Scaled:
    """What one update had to do with its loss scale."""

    scale: float
    """That its batch was computed with."""
    skipped: bool
    after: ScaleState
    """The state of the version that it made."""


@dataclass(frozen=True)
class LossScaler:
    """The rules, as `settings` have them. Knows no threads and keeps nothing."""

    settings: ResolvedLossScale

    @property
    def on(self) -> bool:
        """Whether losses are scaled at all, and updates that are not finite are skipped."""
        return self.settings.kind is not LossScaling.NONE

    def start(self, version: int, saved: ScaleState | None = None) -> ScaleState:
        """Return the state of a version that a run begins with; `saved` is what its checkpoint says, if anything."""
        if saved is not None and self.settings.kind is LossScaling.DYNAMIC:
            return saved
        counted = saved or ScaleState(applied=version)
        scale = self.settings.initial if self.on else 1.0
        return ScaleState(scale, 0, counted.in_row, counted.skipped, counted.applied)

    def after(self, state: ScaleState, used: float, finite: bool) -> ScaleState:
        """Return the state that follows `state`, the newest, by an update whose batch had the scale `used`."""
        if not finite:
            scale = min(state.scale, self._lowered(used))
            return ScaleState(scale, 0, state.in_row + 1, state.skipped + 1, state.applied)
        scale, good = state.scale, state.good
        if self.settings.kind is LossScaling.DYNAMIC and used >= scale:
            good += 1
            if good >= self.settings.interval:
                scale, good = max(scale, min(scale * self.settings.growth, CEILING)), 0
        return ScaleState(scale, good, 0, state.skipped, state.applied + 1)

    def hopeless(self, state: ScaleState, used: float) -> str | None:
        """Return why another update that is not finite ends the run, or None where it is skipped.

        `state` and `used` are those that `after` would be given.
        """
        if not self.on:
            return "losses are not scaled"
        skipped = state.in_row + 1
        if self.settings.kind is LossScaling.DYNAMIC and self.settings.backoff < 1.0:
            if used <= FLOOR:
                return f"the loss scale is down to {used:g}, and is not lowered further"
            if used > state.scale or skipped < 2 * PATIENCE:  # a lower scale is yet to be tried, or few were
                return None
            return f"{skipped} updates in a row, down to a loss scale of {used:g}"
        return f"{skipped} updates in a row at a loss scale of {used:g}" if skipped >= PATIENCE else None

    @property
    def suspects(self) -> str:
        """What most likely makes gradients infinite, and what to do about it, in words."""
        rate = "a learning rate that is too high, or a precision that is too narrow"
        remedy = "start a new run with a lower optimizer.lr, a longer schedule.warmup, or precision=float32"
        if self.settings.kind is LossScaling.STATIC:
            scale = "a loss scale that is too high (lower loss_scale.initial, or loss_scale.kind=dynamic)"
            return f"{scale}, {rate}; {remedy}"
        if self.settings.kind is LossScaling.DYNAMIC and self.settings.backoff == 1.0:
            return f"a loss scale that is too high and never lowered (loss_scale.backoff=0.5), {rate}; {remedy}"
        return f"{rate}; {remedy}"

    def _lowered(self, used: float) -> float:
        """Return the scale after an overflow; one that is below the floor already stays."""
        if self.settings.kind is not LossScaling.DYNAMIC:
            return used
        return min(used, max(used * self.settings.backoff, FLOOR))
