"""Priorities, compared with a sorted list."""

import threading
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import AdmissionError, Graph, Priority, StageFailure

pytestmark = pytest.mark.timeout(60)


@given(steps=st.lists(st.one_of(st.integers(-3, 3), st.none()), max_size=60), capacity=st.integers(1, 5))
def test_the_highest_key_is_taken_first_and_equal_keys_in_the_order_of_arrival(
    steps: list[int | None], capacity: int
) -> None:
    """An integer puts an item with that key, if it fits; None takes one, if there is any."""
    state = Priority[tuple[int, int]](lambda item: item[0]).begin(capacity)
    model: list[tuple[int, int]] = []
    for number, key in enumerate(steps):
        assert state.depth() == len(model) <= capacity
        assert state.ready() == bool(model)
        if key is None and model:
            best = max(model, key=lambda item: (item[0], -item[1]))
            model.remove(best)
            assert state.take(0) == best
        elif key is not None:
            ticket = state.ticket((key, number))
            assert state.fits(ticket) == (len(model) < capacity)
            if state.fits(ticket):
                state.put(ticket, (key, number))
                model.append((key, number))


class Loud(float):
    """A key whose comparisons are user code."""

    def __lt__(self, other: object) -> bool:
        raise AssertionError("compared")

    __gt__ = __le__ = __ge__ = __eq__ = __lt__
    __hash__ = None  # type: ignore[assignment]


def test_keys_are_plain_numbers_when_they_are_compared() -> None:
    state = Priority[Any](lambda item: item).begin(9)
    keys: list[Any] = [Loud(1), np.float32(3), np.int64(2), True, Fraction(1, 2), 10**30]
    for key in keys:
        state.put(state.ticket(key), key)
    assert [float(state.take(0)) for _ in range(6)] == [1e30, 3, 2, 1, 1, 0.5]
    for key in (float("nan"), "1", None):
        with pytest.raises(AdmissionError, match=r"the key of a Priority returned .*, expected a number"):
            state.ticket(key)


def test_an_urgent_item_overtakes_those_in_the_channel() -> None:
    full = threading.Event()

    def work(item: int) -> int:
        assert full.wait(30)
        return item

    def draw() -> Any:
        yield 0  # taken by the worker, which waits
        yield from (1, 2, 9, 3)
        full.set()

    graph = Graph("g")
    # The worker may take the first item before or after the others: it is the lowest, and comes first or last.
    node = graph.stage("work", work, after=graph.source("draw", draw), capacity=5, admission=Priority[int](int))
    graph.sink("out", after=node)
    assert list(graph) in ([0, 9, 3, 2, 1], [9, 3, 2, 1, 0])


def test_an_error_of_the_key_names_the_sender_and_the_stage() -> None:
    graph = Graph("g")
    node = graph.stage("work", int, after=graph.source("draw", [1]), admission=Priority[int](lambda item: 1 // 0))
    graph.sink("out", after=node)
    with pytest.raises(StageFailure, match=r"'draw' .* ZeroDivisionError") as caught:
        list(graph)
    assert "while sending to stage 'work'" in caught.value.__cause__.__notes__[0]  # type: ignore[union-attr]
