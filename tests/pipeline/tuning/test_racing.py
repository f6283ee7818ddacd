"""The rules by which comparisons decide, on made-up ratios."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from threadloom.pipeline.tuning.racing import (
    GAIN,
    LONG_RACE,
    MARGIN,
    MOST_PAIRS,
    PAIRS,
    Comparison,
    TrialBudget,
    compare_pairs,
    race,
    winner_of,
)


def compared(choice: str, *ratios: float) -> Comparison[str]:
    return Comparison(choice, "base", ratios, ratios)


@pytest.mark.parametrize(
    ("ratios", "wins"),
    [
        ((1.2, 1.1), True),
        ((1.2, 1.1, 1.3), True),
        ((1.2, 0.99, 1.3), False),  # not in every round
        ((1.2, 1.0, 1.3), False),
        ((1.2, 0.99, 1.3, 1.1, 1.1), True),  # all but one of five
        ((1.2, 0.99, 1.3, 1.1), False),
        ((1.2, 0.99, 1.3, 1.1, 0.99), False),
        ((1.2,), False),  # only once
        ((1.0 + MARGIN, 1.0 + MARGIN), False),  # too little
        ((), False),
    ],
)
def test_a_race_is_won_in_every_one_of_several_rounds(ratios: tuple[float, ...], wins: bool) -> None:
    rows = [compared("other", 0.9, 0.8)] + ([compared("choice", *ratios)] if ratios else [])
    assert winner_of(rows) == ("choice" if wins else None)


def test_of_several_the_one_that_stayed_longest_wins() -> None:
    assert winner_of([compared("fast once", 2.0, 2.0), compared("kept", 1.1, 1.2, 1.1)]) == "kept"
    assert winner_of([compared("slow", 1.1, 1.1), compared("fast", 1.3, 1.2)]) == "fast"


@pytest.mark.parametrize(
    ("ratios", "significant"),
    [
        ((1.1,) * 4, True),
        ((1.1, 1.1, 1.1, 0.99), False),
        ((1.1,) * 7 + (0.99,), True),  # one of eight may be lost
        ((1.1,) * 6 + (0.99,) * 2, False),
        ((1.1,) * 7 + (0.99,) * 2, False),  # beyond eight pairs chance must be less likely
        ((1.1,) * 13 + (0.99,) * 3, True),
        ((1.1,) * 12 + (0.99,) * 4, False),
        ((1.0 + GAIN / 2,) * 8, False),
    ],
)
def test_the_defaults_are_replaced_by_what_wins_nearly_every_pair(ratios: tuple[float, ...], significant: bool) -> None:
    assert compared("choice", *ratios).significant is significant


@dataclass(frozen=True)
class Scripted:
    """A trial with a made-up score; a trial takes a second."""

    score: float
    seconds: float = 1.0


def scripted(ratios: Sequence[float], seconds: float = 1000.0) -> TrialBudget[str, Scripted]:
    """Return a budget whose trials of "choice" have these ratios to those of "base", one after another."""
    following = iter(ratios)
    return TrialBudget(lambda choice: Scripted(next(following) if choice == "choice" else 1.0), seconds)


@pytest.mark.parametrize(
    ("lost", "pairs", "significant"),
    [
        ((), PAIRS, True),
        ((2,), PAIRS, True),
        ((2, 5), 12, True),  # at most two of 12 are lost by chance with p = 0.019, of 11 with 0.033
        ((2, 5, 7), 15, True),
        ((2, 5, 7, 9), 10, False),  # four lost pairs cannot become significant
        ((0, 1, 2, 3), PAIRS, False),
    ],
)
def test_pairs_that_do_not_decide_are_continued(lost: Sequence[int], pairs: int, significant: bool) -> None:
    ratios = [0.99 if number in lost else 1.1 for number in range(MOST_PAIRS)]
    compared = compare_pairs("choice", "base", scripted(ratios))
    assert (len(compared.ratios), compared.significant) == (pairs, significant)


def test_the_budget_ends_the_pairs() -> None:
    assert len(compare_pairs("choice", "base", scripted([1.1] * 20, seconds=13.0)).ratios) == 6


@pytest.mark.parametrize(
    ("ratios", "rounds", "wins"),
    [
        ((1.1, 1.1, 1.1), 3, True),
        ((1.1, 0.9, 1.1, 1.1, 1.1), LONG_RACE, True),
        ((1.1, 0.9, 0.9), 3, False),
        ((1.1, 0.9, 1.1, 0.9), 4, False),
    ],
)
def test_one_lost_round_makes_a_race_longer(ratios: Sequence[float], rounds: int, wins: bool) -> None:
    budget = scripted(ratios)
    budget.run("base")  # the cost of a trial is that of the trials before
    rows = race("base", ["choice"], budget)
    assert len(rows[0].ratios) == rounds
    assert winner_of(rows) == ("choice" if wins else None)


def test_races_leave_time_for_the_pairs() -> None:
    budget = scripted([1.1] * 100, seconds=100.0)
    budget.run("base")
    while budget.left_for_races() > 0:
        budget.run("base")
    assert budget.left() == 2 * PAIRS
