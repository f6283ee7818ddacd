"""The search of `threadloom tune`: which settings to try, in which order, and when a difference is significant.

This module neither measures nor reads a clock: `search` calls a function that measures one choice and returns its speed
and cost, so that tests run it with made-up figures. `stages.tools.tune.tuning` measures.

The search varies one dimension after another (micro-batch, stage threads, lanes, ...). Each is a race between the best
choice so far and its alternatives. A round of a race measures all of them once, every other round in reverse order, and
compares each alternative with the best choice in the same round only, so that a temporary slowdown of the machine
affects both. From the second round on the slower half is dropped. The final choice is compared with the defaults in
alternating pairs. The defaults are kept unless the choice is faster by at least `GAIN` in the median, and in every pair
(one of eight may be lost).
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from threadloom.stages.resolve import TUNED_KEYS, TunedSettings, TunedValue, format_settings
from threadloom.stages.tools.tune.space import DIMENSIONS, ROUNDING, Dimension, Limits

MARGIN = 0.01
"""Minimum relative speed-up to accept an alternative in a race."""
GAIN = 0.02
"""Minimum relative speed-up to replace the defaults."""
HOPELESS = 0.8
"""An alternative below this fraction of the best of its first round is dropped at once."""
RACE_ROUNDS = 3
MIN_PAIRS, PAIRS = 4, 8
"""Minimum and maximum number of pairs in the comparison with the defaults."""


@dataclass(frozen=True)
class Trial:
    """The result of one short run."""

    tokens_per_s: float
    seconds: float
    """Duration of the whole trial, including its setup."""


Measure = Callable[[TunedSettings], Trial]


@dataclass(frozen=True)
class TrialComparison:
    """One choice compared with another, round by round."""

    dimension: str
    choice: TunedSettings
    base: TunedSettings
    rates: tuple[float, ...]  # tokens per second, one per round
    ratios: tuple[float, ...]  # to the rate of the base in the same round

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratios; the extremes if there are fewer than four rounds."""
        if len(self.ratios) < 4:
            return min(self.ratios), max(self.ratios)
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def changes_rounding(self) -> bool:
        """True if the weights differ in their last bits from those of the base."""
        return any(name in ROUNDING for name in self.choice.differences(self.base))


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    default: TunedSettings
    chosen: TunedSettings
    reason: str
    ratio: float | None
    """Speed of the choice relative to the defaults; None if the defaults are kept."""
    spread: tuple[float, float] | None
    compared: tuple[TrialComparison, ...]
    skipped: tuple[str, ...]
    """Dimensions that the budget did not reach."""
    trials: int
    seconds: float


@dataclass
class _Budget:
    """The time spent on trials. The next trial is expected to cost as much as the most expensive recent one."""

    measure: Measure
    budget: float
    spent: float = 0.0
    costs: list[float] = field(default_factory=list)

    def run(self, choice: TunedSettings) -> float:
        trial = self.measure(choice)
        self.spent += trial.seconds
        self.costs.append(trial.seconds)
        return trial.tokens_per_s

    def left(self) -> int:
        """Return the number of trials that fit in the remaining time."""
        return int((self.budget - self.spent) / max(self.costs[-8:], default=math.inf))


def search(
    default: TunedSettings,
    limits: Limits,
    measure: Measure,
    budget: float,
    fixed: Mapping[str, TunedValue] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Search for a faster choice than `default` with trials that take at most `budget` seconds in total.

    `fixed` are the fields that keep their value. `on_progress` is called at the start of each dimension.
    """
    budgeted = _Budget(measure, budget)
    best, compared, skipped = default, [], []
    for dimension in DIMENSIONS:
        candidates = _candidates(dimension, best, limits, fixed or {})
        if not candidates:
            continue
        if not budgeted.costs:
            budgeted.run(best)
        # Time is reserved for the comparison with the defaults, without which no choice is accepted.
        room = (budgeted.left() - 2 * MIN_PAIRS) // 2 - 1
        if room < len(candidates):
            skipped.append(dimension.name if room < 1 else f"some of {dimension.name}")
            candidates = candidates[: max(0, room)]
        if not candidates:
            continue
        plural = "s" if len(candidates) > 1 else ""
        on_progress(
            f"{dimension.name}: {len(candidates)} alternative{plural} to {format_settings(_varied(best, candidates))}"
        )
        rows = _race(dimension.name, best, candidates, budgeted)
        compared += rows
        winner = max((row for row in rows if len(row.ratios) > 1), key=_rank, default=None)
        if winner is not None and winner.ratio > 1.0 + MARGIN:
            best = winner.choice
    if best == default:
        reason = _reason_for_defaults(compared, skipped)
        chosen, last = default, None
    else:
        on_progress(f"{format_settings(best.differences(default))} compared with the defaults")
        last = _compare_pairs(best, default, budgeted)
        compared.append(last)
        chosen, reason = _decide(last)
    won = last if last is not None and chosen != default else None
    return SearchResult(
        default=default,
        chosen=chosen,
        reason=reason,
        ratio=won.ratio if won else None,
        spread=won.spread if won else None,
        compared=tuple(compared),
        skipped=tuple(skipped),
        trials=len(budgeted.costs),
        seconds=budgeted.spent,
    )


def _candidates(
    dimension: Dimension, best: TunedSettings, limits: Limits, fixed: Mapping[str, TunedValue]
) -> list[TunedSettings]:
    found = dict.fromkeys(
        msgspec.structs.replace(choice, slots=fixed.get("slots", choice.slots))
        for choice in dimension.alternatives(best, limits)
    )
    return [choice for choice in found if choice != best and not choice.differences(best).keys() & fixed.keys()]


def _varied(base: TunedSettings, candidates: Sequence[TunedSettings]) -> dict[str, TunedValue]:
    """Return the values of the base in the fields that its alternatives change."""
    changed = {name for choice in candidates for name in choice.differences(base)}
    return {name: getattr(base, name) for name in TUNED_KEYS if name in changed}


def _rank(row: TrialComparison) -> tuple[int, float]:
    return len(row.ratios), row.ratio


def _race(
    dimension: str, base: TunedSettings, candidates: Sequence[TunedSettings], budgeted: _Budget
) -> list[TrialComparison]:
    """Run rounds until one candidate is left; from the second round on the slower half is dropped."""
    rates: dict[TunedSettings, list[float]] = {choice: [] for choice in candidates}
    ratios: dict[TunedSettings, list[float]] = {choice: [] for choice in candidates}
    left, done = list(candidates), 0
    while left and (done < RACE_ROUNDS or len(left) > 1):
        if budgeted.left() < len(left) + 1 + 2 * MIN_PAIRS:
            break
        order = [base, *left] if done % 2 == 0 else [*reversed(left), base]
        measured = {choice: budgeted.run(choice) for choice in order}
        for choice in left:
            rates[choice].append(measured[choice])
            ratios[choice].append(measured[choice] / measured[base])
        done += 1
        left.sort(key=lambda choice: statistics.median(ratios[choice]), reverse=True)
        if done == 1:
            ahead = max(1.0, ratios[left[0]][0])
            left = [choice for choice in left if ratios[choice][0] >= HOPELESS * ahead]
        else:
            left = left[: math.ceil(len(left) / 2)]
    return [
        TrialComparison(dimension, choice, base, tuple(rates[choice]), tuple(ratios[choice]))
        for choice in candidates
        if ratios[choice]
    ]


def _compare_pairs(best: TunedSettings, default: TunedSettings, budgeted: _Budget) -> TrialComparison:
    rates: list[float] = []
    ratios: list[float] = []
    while len(ratios) < PAIRS and (len(ratios) < MIN_PAIRS or budgeted.left() >= 2):
        order = (default, best) if len(ratios) % 2 == 0 else (best, default)
        measured = {choice: budgeted.run(choice) for choice in order}
        rates.append(measured[best])
        ratios.append(measured[best] / measured[default])
    return TrialComparison("all together", best, default, tuple(rates), tuple(ratios))


def _decide(last: TrialComparison) -> tuple[TunedSettings, str]:
    """Accept the new choice if chance is unlikely: equal choices win 7 of 8 pairs with p = 9/256, 4 of 4 with 1/16."""
    pairs, won = len(last.ratios), sum(ratio > 1.0 for ratio in last.ratios)
    low, high = last.spread
    best = format_settings(last.choice.differences(last.base))
    figures = (
        f"{last.ratio:.2f} times the defaults (quartiles {low:.2f} and {high:.2f}), faster in {won} of {pairs} "
        "alternating pairs"
    )
    if last.ratio >= 1.0 + GAIN and pairs - won <= pairs // PAIRS:
        return last.choice, f"{best} ran at {figures}"
    conclusion = "slower" if not won else "within the noise"
    return last.base, f"the defaults are kept: the best alternative, {best}, ran at {figures}, which is {conclusion}"


def _reason_for_defaults(compared: Sequence[TrialComparison], skipped: Sequence[str]) -> str:
    if not compared:
        return "the defaults are kept: " + (
            "the budget is too short for any comparison" if skipped else "every setting was given"
        )
    best = max(compared, key=_rank)
    tried = f"none of {len(compared)} alternatives was more than {MARGIN:.0%} faster"
    settings = format_settings(best.choice.differences(best.base))
    return f"the defaults are kept: {tried}; the best, {settings}, had a ratio of {best.ratio:.2f}"
