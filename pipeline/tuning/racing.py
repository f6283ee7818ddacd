"""Comparisons of choices by short trials under a time budget: which to repeat, and when a difference is significant.

This module neither measures nor reads a clock: a `TrialBudget` calls a function that measures one choice and returns
its score (larger is better) and cost, so that tests run it with made-up figures.

A round of a race measures the best choice so far and its alternatives once, every other round in reverse order, and
compares each alternative with the best choice in the same round only, so that a temporary slowdown of the machine
affects both. From the second round on the slower half is dropped, and the last one may lose one round of five. A choice
is finally compared with the defaults in alternating pairs, and accepted only if it is better by a minimum in the median
and chance is unlikely: equal choices would win that many pairs with a small probability. Eight pairs that do not
decide are continued.
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
RACE_ROUNDS, LONG_RACE = 3, 5
"""Rounds of a race, and those of a race whose last alternative has lost one round."""
MIN_PAIRS, PAIRS, MOST_PAIRS = 4, 8, 16
"""Number of pairs in the comparison with the defaults: minimum, usual, and maximum if the usual one does not decide."""
CHANCE, LATE_CHANCE = 1 / 16, 0.02
"""Largest probability of the won pairs for equal choices, in the usual number of pairs and beyond it. The second one is
smaller, because a comparison that goes on has two occasions to be won by chance."""
FINAL_SHARE = 0.2
"""Share of the budget that races leave to the comparison with the defaults, within those numbers of pairs."""
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
    def chance(self) -> float:
        """The probability that equal choices win as many rounds or more: 1/16 for 4 of 4, 9/256 for 7 of 8."""
        return chance_of(len(self.ratios), self.won)

    @property
    def significant(self) -> bool:
        """True if the choice is better by `GAIN`, and chance is unlikely."""
        return self.ratio >= 1.0 + GAIN and self.chance <= (CHANCE if len(self.ratios) <= PAIRS else LATE_CHANCE)

    def describe(self, base: str) -> str:
        """Return the figures as text: 1.20 times `base` (quartiles ...), faster in 8 of 8 alternating pairs."""
        low, high = self.spread
        return (
            f"{self.ratio:.2f} times {base} (quartiles {low:.2f} and {high:.2f}), faster in {self.won} of "
            f"{len(self.ratios)} alternating pairs"
        )


def chance_of(rounds: int, won: int) -> float:
    """Return the probability that one of two equal choices wins `won` rounds or more."""
    return sum(math.comb(rounds, number) for number in range(won, rounds + 1)) / 2.0**rounds


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
        return int((self.budget - self.spent) / self._expected())

    def left_for_races(self) -> int:
        """Return the number of trials that fit before the comparison with the defaults.

        No choice is accepted without that comparison. With few pairs it rejects better choices, since all have to be
        won, so two tunings of one machine would end with different settings.
        """
        pairs = int(FINAL_SHARE * self.budget / self._expected()) // 2
        return self.left() - 2 * min(max(pairs, MIN_PAIRS), PAIRS)

    def room(self) -> int:
        """Return the number of alternatives that a race of two rounds can have."""
        return self.left_for_races() // 2 - 1

    def _expected(self) -> float:
        return max(max(self.costs[-RECENT:], default=math.inf), 1e-9)


def race(base: Choice, candidates: Sequence[Choice], budget: TrialBudget[Choice, Result]) -> list[Comparison[Choice]]:
    """Run rounds until one candidate is left and decided; from the second round on the slower half is dropped."""
    rates: dict[Choice, list[float]] = {choice: [] for choice in candidates}
    ratios: dict[Choice, list[float]] = {choice: [] for choice in candidates}
    left, done = list(candidates), 0
    while left and (len(left) > 1 or done < RACE_ROUNDS or _is_open(ratios[left[0]])):
        if budget.left_for_races() < len(left) + 1:
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


def _is_open(ratios: Sequence[float]) -> bool:
    """Return True if one lost round does not decide yet, which more rounds do."""
    lost = sum(ratio <= 1.0 for ratio in ratios)
    return len(ratios) < LONG_RACE and lost == 1 and statistics.median(ratios) > 1.0 + MARGIN


def winner_of(rows: Sequence[Comparison[Choice]]) -> Choice | None:
    """Return the choice that won a race by more than `MARGIN` in the median, or None.

    It has won every round of two or more, or all but one of `LONG_RACE`.
    """
    best = max((row for row in rows if len(row.ratios) > 1), key=rank, default=None)
    if best is None or best.ratio <= 1.0 + MARGIN or len(best.ratios) - best.won > len(best.ratios) // LONG_RACE:
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
    """Compare the best choice with the defaults in alternating pairs, as many as the budget permits and it takes."""
    compared = Comparison(best, default, (), ())
    while len(compared.ratios) < MIN_PAIRS or (
        len(compared.ratios) < MOST_PAIRS and budget.left() >= 2 and not _is_decided(compared)
    ):
        order = (default, best) if len(compared.ratios) % 2 == 0 else (best, default)
        measured = {choice: budget.run(choice) for choice in order}
        ratio = measured[best] / measured[default]
        compared = Comparison(best, default, (*compared.rates, measured[best]), (*compared.ratios, ratio))
    return compared


def _is_decided(compared: Comparison[Choice]) -> bool:
    """Return True if no more pairs are needed, or they could not make the difference significant."""
    pairs = len(compared.ratios)
    if pairs < PAIRS:
        return False
    return compared.significant or chance_of(MOST_PAIRS, MOST_PAIRS - (pairs - compared.won)) > LATE_CHANCE
