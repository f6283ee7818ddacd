"""Comparisons of choices by short trials under a time budget: which to repeat, and when a difference is significant.

This module neither measures nor reads a clock: a `TrialBudget` calls a function that measures one choice and returns
its score (larger is better) and cost, so that tests run it with made-up figures.

A round of a race measures the best choice so far and its alternatives once, every other round in reverse order, and
compares each alternative with the best choice in the same round only, so that a temporary slowdown of the machine
affects both. From the second round on the slower half is dropped. A choice is finally compared with the defaults in
alternating pairs, and accepted only if it is better by a minimum in the median, and in every pair (one of eight may be
lost).
"""

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

MARGIN = 0.01
"""Minimum relative gain to accept an alternative in a race."""
GAIN = 0.02
"""Minimum relative gain to replace the defaults."""
HOPELESS = 0.8
"""An alternative below this fraction of the best of its first round is dropped at once."""
RACE_ROUNDS = 3
MIN_PAIRS, PAIRS = 4, 8
"""Minimum and maximum number of pairs in the comparison with the defaults."""
RECENT = 8
"""Number of recent trials whose largest cost is expected of the next one."""


class Scored(Protocol):
    """The result of a trial."""

    @property
    def score(self) -> float:
        """The quality of the choice, larger is better, such as items per second; 0 if the trial failed."""

    @property
    def seconds(self) -> float:
        """Duration of the whole trial, including its setup."""


Choice = TypeVar("Choice", bound=Hashable)
Result = TypeVar("Result", bound=Scored)


@dataclass(frozen=True)
class Comparison(Generic[Choice]):
    """One choice compared with another, round by round."""

    choice: Choice
    base: Choice
    rates: tuple[float, ...]
    """Scores of the choice, one per round."""
    ratios: tuple[float, ...]
    """Ratios to the score of the base in the same round."""

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
    def won(self) -> int:
        """Number of rounds in which the choice was better."""
        return sum(ratio > 1.0 for ratio in self.ratios)

    @property
    def significant(self) -> bool:
        """True if chance is unlikely: equal choices win 7 of 8 pairs with p = 9/256, and 4 of 4 with 1/16."""
        pairs = len(self.ratios)
        return self.ratio >= 1.0 + GAIN and pairs - self.won <= pairs // PAIRS

    def describe(self, base: str) -> str:
        """Return the figures as text: 1.20 times `base` (quartiles ...), faster in 8 of 8 alternating pairs."""
        low, high = self.spread
        return (
            f"{self.ratio:.2f} times {base} (quartiles {low:.2f} and {high:.2f}), faster in {self.won} of "
            f"{len(self.ratios)} alternating pairs"
        )


@dataclass
class TrialBudget(Generic[Choice, Result]):
    """The time spent on trials. The next trial is expected to cost as much as the most expensive recent one."""

    measure: Callable[[Choice], Result]
    budget: float
    spent: float = 0.0
    costs: list[float] = field(default_factory=list)
    latest: dict[Choice, Result] = field(default_factory=dict)
    """The latest result of each choice."""
    scores: list[tuple[Choice, float]] = field(default_factory=list)
    """The score of every trial, in order."""

    def run(self, choice: Choice) -> float:
        """Measure a choice and return its score."""
        trial = self.measure(choice)
        self.spent += trial.seconds
        self.costs.append(trial.seconds)
        self.latest[choice] = trial
        self.scores.append((choice, trial.score))
        return trial.score

    def left(self) -> int:
        """Return the number of trials that fit in the remaining time."""
        return int((self.budget - self.spent) / max(max(self.costs[-RECENT:], default=math.inf), 1e-9))

    def room(self) -> int:
        """Return the number of alternatives that a race of two rounds can have.

        Time is reserved for the comparison with the defaults, without which no choice is accepted.
        """
        return (self.left() - 2 * MIN_PAIRS) // 2 - 1


def race(base: Choice, candidates: Sequence[Choice], budget: TrialBudget[Choice, Result]) -> list[Comparison[Choice]]:
    """Run rounds until one candidate is left; from the second round on the slower half is dropped."""
    rates: dict[Choice, list[float]] = {choice: [] for choice in candidates}
    ratios: dict[Choice, list[float]] = {choice: [] for choice in candidates}
    left, done = list(candidates), 0
    while left and (done < RACE_ROUNDS or len(left) > 1):
        if budget.left() < len(left) + 1 + 2 * MIN_PAIRS:
            break
        order = [base, *left] if done % 2 == 0 else [*reversed(left), base]
        measured = {choice: budget.run(choice) for choice in order}
        if not measured[base]:
            break  # the base failed: nothing can be compared with it
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
        Comparison(choice, base, tuple(rates[choice]), tuple(ratios[choice])) for choice in candidates if ratios[choice]
    ]


def winner_of(rows: Sequence[Comparison[Choice]]) -> Choice | None:
    """Return the choice that won a race: every round of two or more, by more than `MARGIN` in the median; or None."""
    best = max((row for row in rows if len(row.ratios) > 1), key=rank, default=None)
    if best is None or best.ratio <= 1.0 + MARGIN or best.won < len(best.ratios):
        return None
    return best.choice


def why_no_winner(rows: Sequence[Comparison[Choice]]) -> str:
    """Return why none of these comparisons has a winner, as a clause."""
    best = max(rows, key=rank)
    figures = f"the best of {len(rows)} alternatives had a ratio of {best.ratio:.2f}"
    if best.ratio <= 1.0 + MARGIN:
        return f"{figures}, and {MARGIN:.0%} more are needed"
    if len(best.ratios) < 2:
        return f"{figures} in one round, and the budget was too short to repeat it"
    return f"{figures}, but was not faster in every round: {best.won} of {len(best.ratios)}"


def rank(row: Comparison[Choice]) -> tuple[int, float]:
    """Return the key by which comparisons of a race are sorted: the later it was dropped, the better."""
    return len(row.ratios), row.ratio


def compare_pairs(best: Choice, default: Choice, budget: TrialBudget[Choice, Result]) -> Comparison[Choice]:
    """Compare the best choice with the defaults in alternating pairs, as many as the budget permits."""
    rates: list[float] = []
    ratios: list[float] = []
    while len(ratios) < PAIRS and (len(ratios) < MIN_PAIRS or budget.left() >= 2):
        order = (default, best) if len(ratios) % 2 == 0 else (best, default)
        measured = {choice: budget.run(choice) for choice in order}
        rates.append(measured[best])
        ratios.append(measured[best] / measured[default])
    return Comparison(best, default, tuple(rates), tuple(ratios))
