"""The guard against spikes of the loss: a pure function of the losses and gradient norms of the run.

An update is a spike if its loss, or the norm of its gradient before clipping by norm, exceeds μ + d · σ, with the mean
and the standard deviation (that of a sample) of the last `guard.window` values before it, spikes among them, once there
are half as many: the rule of OLMo 2's SkipStepOptimizer (OLMo team 2025, arXiv 2501.00656; d = 6, 128 updates). With
`guard.action=skip` a loss or a norm that is not finite is a spike too; it is not among the values.

A skipped update leaves the weights, the moments and the average as they are, and the bias corrections do not count it;
the batch is consumed and the learning rate goes on, as for an overflow of the loss scale.

Guarantee: whether an update is a spike depends on the updates before it alone. The state belongs to a version of the
weights and is saved with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from threadloom.stages.config import GuardConfig, SpikeAction


@dataclass(frozen=True, slots=True)
class GuardState:
    """The updates that the guard compares the next one with."""

    losses: tuple[float, ...] = ()
    """The last finite losses, the oldest first."""
    norms: tuple[float, ...] = ()
    """The last finite gradient norms."""
    in_row: int = 0
    """Consecutive updates that have been skipped."""


@dataclass(frozen=True)
class SpikeGuard:
    """The rules under given settings. Stateless."""

    settings: GuardConfig

    @property
    def on(self) -> bool:
        """True if spikes are looked for."""
        return self.settings.action is not SpikeAction.OFF

    @property
    def skips(self) -> bool:
        """True if spikes are skipped."""
        return self.settings.action is SpikeAction.SKIP

    def spike(self, state: GuardState, loss: float | None, norm: float) -> str | None:
        """Return why an update is a spike; None if it is none, or the guard is off. `loss` is None without tokens."""
        if not self.on:
            return None
        for name, value, earlier in (("loss", loss, state.losses), ("gradient norm", norm, state.norms)):
            if value is None:
                continue
            if not math.isfinite(value):
                return f"its {name} is {value}" if self.skips else None
            limit = self.limit(earlier)
            if value > limit:
                return f"its {name} is {value:.4g}, above {limit:.4g}"
        return None

    def limit(self, values: Sequence[float]) -> float:
        """Return the value above which the next one is a spike; infinity while there are too few."""
        count = len(values)
        if count < max(2, self.settings.window // 2):
            return math.inf
        mean = math.fsum(values) / count
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        return mean + self.settings.deviations * math.sqrt(variance)

    def after(self, state: GuardState, loss: float | None, norm: float, *, skipped: bool) -> GuardState:
        """Return the state after an update."""
        if not self.on:
            return state
        return GuardState(
            self._with(state.losses, loss), self._with(state.norms, norm), state.in_row + 1 if skipped else 0
        )

    def exhausted(self, state: GuardState) -> bool:
        """Return True if one more skipped update ends the run."""
        return state.in_row + 1 >= self.settings.most

    def _with(self, values: tuple[float, ...], value: float | None) -> tuple[float, ...]:
        if value is None or not math.isfinite(value):
            return values
        return (*values, value)[-self.settings.window :]
