"""Groups that are bounded by weight and time: the state machine, driven event by event."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import AdmissionError, Gather
from threadloom.pipeline.policy.admission import Admission

SECOND = 1_000_000_000


def put(state: Admission[Any, Any], *items: Any) -> None:
    for item in items:
        ticket = state.ticket(item)
        assert state.fits(ticket)
        state.put(ticket, item)


def take_all(state: Admission[Any, Any]) -> list[Any]:
    taken = []
    while state.ready():
        taken.append(state.take(0))
    return taken


def test_a_group_is_complete_with_its_weight_or_before_an_item_that_exceeds_it() -> None:
    state = Gather[str](count=5, weight=len, partial=True).begin(9)
    put(state, "aaa", "bb", "cccc", "dd", "e", "ffffffff", "g")
    assert take_all(state) == [["aaa", "bb"], ["cccc"], ["dd", "e"], ["ffffffff"]]
    state.finish()
    assert take_all(state) == [["g"]]


def test_weights_belong_to_the_groups_of_their_keys() -> None:
    state = Gather[tuple[str, int]](lambda item: item[0], 5, weight=lambda item: item[1], partial=True).begin(9)
    put(state, ("a", 3), ("b", 4), ("a", 2), ("b", 2))
    assert take_all(state) == [[("a", 3), ("a", 2)], [("b", 4)]]


def test_an_item_that_would_start_a_group_waits_while_the_channel_is_full() -> None:
    state = Gather[int](count=5, weight=lambda item: item, partial=True).begin(1)
    put(state, 5)
    assert not state.fits(state.ticket(1))
    assert take_all(state) == [[5]]
    put(state, 3)
    assert state.fits(state.ticket(3))
    put(state, 3)
    assert not state.fits(state.ticket(3))  # it would complete the second group of a capacity of one
    assert state.fits(state.ticket(2))


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 12))
def test_weighted_groups_are_those_of_a_loop(weights: list[int], count: int) -> None:
    expected: list[list[int]] = []
    for weight in weights:
        if not expected or sum(expected[-1]) + weight > count:
            expected.append([])
        expected[-1].append(weight)
    state = Gather[int](count=count, weight=lambda item: item, partial=True).begin(99)
    put(state, *weights)
    state.finish()
    assert take_all(state) == expected


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_is_a_number_above_zero(weight: float) -> None:
    state = Gather[int](count=5, weight=lambda item: weight, partial=True).begin(1)
    with pytest.raises(AdmissionError, match="expected the weight of an item to be a number above 0"):
        state.ticket(1)


def test_the_age_of_the_oldest_item_completes_a_group() -> None:
    state = Gather[str](lambda item: item[0], 3, within=2, partial=True).begin(9)
    assert state.timed
    assert state.due() is None
    state.advance(10 * SECOND)
    put(state, "a1")
    state.advance(11 * SECOND)
    put(state, "b1", "a2")
    assert state.due() == 12 * SECOND
    state.advance(12 * SECOND - 1)
    assert not state.ready()
    state.advance(12 * SECOND)
    assert take_all(state) == [["a1", "a2"]]
    assert state.due() == 13 * SECOND
    put(state, "b2", "b3")
    assert state.due() is None
    assert take_all(state) == [["b1", "b2", "b3"]]


def test_groups_that_are_due_at_once_are_taken_oldest_first() -> None:
    state = Gather[str](lambda item: item[0], 3, within=1, partial=True).begin(9)
    for second, item in enumerate(("b", "a", "c")):
        state.advance(second * SECOND // 4)
        put(state, item)
    state.advance(9 * SECOND)
    assert take_all(state) == [["b"], ["a"], ["c"]]


def test_settings_are_checked() -> None:
    for within in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected within > 0 seconds or None"):
            Gather[int](count=2, within=within, partial=True)
    for settings in ({"within": 1.0}, {"weight": len}):
        with pytest.raises(ValueError, match="pass partial=True"):
            Gather[str](count=2, **settings)
