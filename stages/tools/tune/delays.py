"""The choice of the delay by the expected time to a loss: a pure function of speeds and of the cost in updates."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from threadloom.stages.resolve import DelayCost


@dataclass(frozen=True)
class DelaySpeed:
    """The speed with one delay, measured in rounds that alternate with those of the other delays."""

    delay: int
    rates: tuple[float, ...]
    """Tokens per second, one per round."""


@dataclass(frozen=True)
class DelayRow:
    """One delay compared with none."""

    delay: int
    speed: float
    """Median of the ratios of the speeds in the same round, each of a whole run with its synchronous updates."""
    interval: tuple[float, float]
    """Smallest and largest of these ratios."""
    updates: float
    """Updates to the same loss, as a multiple of those without a delay."""

    @property
    def time(self) -> float:
        """Expected time to the same loss, as a multiple of that without a delay."""
        return self.updates / self.speed

    @property
    def pays(self) -> bool:
        """True if even the slowest round is faster than the additional updates are slow."""
        return self.interval[0] > self.updates

    def sentence(self) -> str:
        """Return what was measured as a sentence."""
        low, high = self.interval
        return (
            f"τ = {self.delay} is {self.speed:.2f} ({low:.2f} to {high:.2f}) times as fast and needs "
            f"{self.updates:.2f} times the updates"
        )


@dataclass(frozen=True)
class DelayChoice:
    """The delay with the least expected time to a loss."""

    delay: int
    rows: tuple[DelayRow, ...]

    def sentences(self) -> list[str]:
        """Return the decision and its reasons."""
        if not self.rows:
            return ["no delay was compared"]
        chosen = next((row for row in self.rows if row.delay == self.delay), None)
        if chosen is None:
            return ["do not pipeline: " + "; ".join(row.sentence() for row in self.rows)]
        others = [row.sentence() for row in self.rows if row is not chosen]
        return [
            f"set delay={self.delay}: {chosen.sentence()}, so it takes {chosen.time:.2f} of the time to the same loss",
            *others,
        ]


def choose_delay(speeds: Sequence[DelaySpeed], costs: Mapping[int, DelayCost], synchronous: float = 0.0) -> DelayChoice:
    """Return the choice among measured delays, of which the first is 0; `costs` maps a delay to its cost.

    `synchronous` is the share of the updates of a run, the first ones, that have no delay.

    A delay is chosen only if it pays in every round. Raises ValueError unless the first delay is 0 and all have as many
    rounds.
    """
    base, *others = speeds
    if base.delay or any(len(speed.rates) != len(base.rates) for speed in others):
        raise ValueError("expected delay 0 first, and as many rounds of every delay")
    rows = []
    for speed in others:
        times = [reference / rate for rate, reference in zip(speed.rates, base.rates, strict=True)]
        ratios = [1.0 / (synchronous + (1.0 - synchronous) * time) for time in times]
        middle = statistics.median(ratios)
        rows.append(DelayRow(speed.delay, middle, (min(ratios), max(ratios)), costs[speed.delay].updates))
    best = min((row for row in rows if row.pays), key=lambda row: row.time, default=None)
    return DelayChoice(best.delay if best else 0, tuple(rows))
