"""The search of `threadloom tune`: which settings to try, in which order.

This module neither measures nor reads a clock: `search` calls a function that measures one choice and returns its speed
and cost, so that tests run it with made-up figures. `stages.tools.tune.tuning` measures, and
`threadloom.pipeline.tuning` has the rounds of a race, and the comparison with the defaults.

The search varies one dimension after another (micro-batch, stage threads, lanes, ...). Each is a race between the best
choice so far and its alternatives. If the budget permits, every dimension is varied again with the best values of the
others. Choices are compared by a score, by default their tokens per second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from threadloom.pipeline.tuning import (
    Comparison,
    TrialBudget,
    compare_pairs,
    race,
    rank,
    why_no_winner,
    winner_of,
)
from threadloom.stages.resolve import TUNED_KEYS, TunedSettings, TunedValue, format_settings
from threadloom.stages.tools.tune.space import DIMENSIONS, ROUNDING, Dimension, Limits
from threadloom.stages.tools.tune.stage_shares import StageShares


@dataclass(frozen=True)
class Trial:
    """The result of one short run."""

    tokens_per_s: float
    seconds: float
    """Duration of the whole trial, including its setup."""
    memory: int | None = None
    """Bytes that a run with these settings allocates; None if unknown."""
    stages: tuple[StageShares, ...] = ()
    """How the stages spent their time; empty if unknown."""

    @property
    def score(self) -> float:
        """The speed, by which choices are compared unless another score is given."""
        return self.tokens_per_s


PASSES = 2
"""Number of times that every dimension is varied: the best value of one depends on the others."""

Measure = Callable[[TunedSettings], Trial]
Score = Callable[[TunedSettings, Trial], float]
"""Returns what choices are compared by, larger is better."""


def tokens_per_second(choice: TunedSettings, trial: Trial) -> float:
    """Return the speed of a trial: the default score."""
    return trial.score


@dataclass(frozen=True)
class ScoredTrial:
    """A trial with its score."""

    choice: TunedSettings
    trial: Trial
    score: float

    @property
    def seconds(self) -> float:
        """Duration of the whole trial."""
        return self.trial.seconds


@dataclass(frozen=True)
class TrialComparison(Comparison[TunedSettings]):
    """One choice compared with another, round by round."""

    dimension: str = ""
    before: tuple[StageShares, ...] = ()
    """The shares of the stages with the base: the bottleneck before this choice."""
    accepted: bool = False
    """True if the search continued from this choice."""

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
    """Score of the choice relative to the defaults; None if the defaults are kept."""
    spread: tuple[float, float] | None
    compared: tuple[TrialComparison, ...]
    skipped: tuple[str, ...]
    """Dimensions that the budget did not reach."""
    stages: tuple[StageShares, ...]
    """The shares of the stages with the chosen settings; empty if unknown."""
    measured: tuple[ScoredTrial, ...]
    """All trials in order."""
    seconds: float

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(self.measured)


@dataclass
class _Scorer:
    """Measures choices, scores them, and remembers all trials."""

    measure: Measure
    score: Score
    trials: list[ScoredTrial]

    def __call__(self, choice: TunedSettings) -> ScoredTrial:
        trial = self.measure(choice)
        self.trials.append(ScoredTrial(choice, trial, self.score(choice, trial)))
        return self.trials[-1]


def search(
    default: TunedSettings,
    limits: Limits,
    measure: Measure,
    budget: float,
    fixed: Mapping[str, TunedValue] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
    score: Score = tokens_per_second,
) -> SearchResult:
    """Search for a better choice than `default` with trials that take at most `budget` seconds in total.

    `fixed` are the fields that keep their value. `on_progress` is called at the start of each dimension. Choices are
    compared by `score`.
    """
    scorer = _Scorer(measure, score, [])
    budgeted = TrialBudget(scorer, budget)
    best, compared, skipped = default, list[TrialComparison](), list[str]()
    tried = {default}
    for number, dimension in enumerate(PASSES * DIMENSIONS):
        again = number >= len(DIMENSIONS)
        candidates = [each for each in _candidates(dimension, best, limits, fixed or {}) if each not in tried]
        if not candidates or (again and best == default):
            continue
        if not budgeted.costs:
            budgeted.run(best)
        room = budgeted.room()
        if room < len(candidates) and not again:
            skipped.append(dimension.name if room < 1 else f"some of {dimension.name}")
        candidates = candidates[: max(0, room)]
        if not candidates:
            continue
        plural = "s" if len(candidates) > 1 else ""
        on_progress(
            f"{dimension.name}: {len(candidates)} alternative{plural} to {format_settings(_varied(best, candidates))}"
        )
        tried.update(candidates)
        rows = race(best, candidates, budgeted)
        winner = winner_of(rows)
        before = budgeted.latest[best].trial.stages
        compared += [_of_dimension(row, dimension.name, before, row.choice == winner) for row in rows]
        best = winner or best
    if best == default:
        reason = _reason_for_defaults(compared, skipped)
        chosen, last = default, None
    else:
        on_progress(f"{format_settings(best.differences(default))} compared with the defaults")
        last = _of_dimension(compare_pairs(best, default, budgeted), "all together")
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
        stages=budgeted.latest[chosen].trial.stages if chosen in budgeted.latest else (),
        measured=tuple(scorer.trials),
        seconds=budgeted.spent,
    )


def _of_dimension(
    row: Comparison[TunedSettings], dimension: str, before: tuple[StageShares, ...] = (), accepted: bool = False
) -> TrialComparison:
    return TrialComparison(row.choice, row.base, row.rates, row.ratios, dimension, before, accepted)


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


def _decide(last: TrialComparison) -> tuple[TunedSettings, str]:
    """Return the new choice if chance is unlikely, otherwise the defaults, with the reason."""
    figures = last.describe("the defaults")
    best = format_settings(last.choice.differences(last.base))
    if last.significant:
        return last.choice, f"{best} ran at {figures}"
    conclusion = "slower" if not last.won else "within the noise"
    return last.base, f"the defaults are kept: the best alternative, {best}, ran at {figures}, which is {conclusion}"


def _reason_for_defaults(compared: Sequence[TrialComparison], skipped: Sequence[str]) -> str:
    if not compared:
        return "the defaults are kept: " + (
            "the budget is too short for any comparison" if skipped else "every setting was given"
        )
    best = max(compared, key=rank)
    settings = format_settings(best.choice.differences(best.base))
    return f"the defaults are kept: {why_no_winner(compared)} ({settings})"
