"""The rules by which comparisons decide, on made-up ratios."""

import pytest

from threadloom.pipeline.tuning.racing import GAIN, MARGIN, Comparison, winner_of


def compared(choice: str, *ratios: float) -> Comparison[str]:
    return Comparison(choice, "base", ratios, ratios)


@pytest.mark.parametrize(
    ("ratios", "wins"),
    [
        ((1.2, 1.1), True),
        ((1.2, 1.1, 1.3), True),
        ((1.2, 0.99, 1.3), False),  # not in every round
        ((1.2, 1.0, 1.3), False),
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
        ((1.0 + GAIN / 2,) * 8, False),
    ],
)
def test_the_defaults_are_replaced_by_what_wins_nearly_every_pair(ratios: tuple[float, ...], significant: bool) -> None:
    assert compared("choice", *ratios).significant is significant
