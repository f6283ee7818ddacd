"""Tests of arrows between events, on constructed events."""

from threadloom.pipeline import TraceEvent
from threadloom.pipeline.observe.arrows import Wiring, arrows, chains, item_numbers

LINE = Wiring({"a": (), "b": ("a",), "c": ("b",)})


def event(stage: str, start: int, end: int, taken: tuple[int, ...] = (), sent: tuple[int, ...] = ()) -> TraceEvent:
    return TraceEvent(stage, 0, start, end, {}, 0, taken, sent)


def test_an_item_has_an_arrow_from_its_sender() -> None:
    events = [event("a", 0, 1, (), (7,)), event("b", 2, 3, (7,), (8,)), event("c", 4, 5, (8,))]
    assert arrows(events, LINE) == [(0, 1), (1, 2)]
    assert item_numbers(events, arrows(events, LINE), LINE) == [(0,), (0,), (0,)]


def test_sending_and_taking_may_have_the_same_time() -> None:
    assert arrows([event("a", 0, 2, (), (7,)), event("b", 2, 3, (7,))], LINE) == [(0, 1)]


def test_an_interned_object_is_taken_in_the_order_of_sending() -> None:
    events = [
        event("a", 0, 1, (), (7,)),
        event("a", 1, 2, (), (7,)),
        event("b", 3, 4, (7,)),
        event("b", 4, 5, (7,)),
    ]
    assert arrows(events, LINE) == [(0, 2), (1, 3)]


def test_items_excluded_by_a_when_do_not_shift_the_others() -> None:
    events = [event("a", 0, 1, (), (7,)), event("a", 1, 2, (), (7,)), event("b", 3, 4, (7,))]
    assert arrows(events, Wiring({"a": (), "b": ("a",)}, {"b"})) == [(1, 2)]


def test_no_arrow_leads_back_in_time() -> None:
    assert arrows([event("b", 0, 1, (7,)), event("a", 2, 3, (), (7,))], LINE) == []


def test_only_predecessors_are_senders() -> None:
    events = [event("a", 0, 1, (), (7,)), event("c", 2, 3, (7,))]
    assert arrows(events, LINE) == []
    assert arrows(events, Wiring()) == []
    assert item_numbers(events, [], LINE) == [(0,), ()]


def test_a_group_has_arrows_from_all_its_items_and_an_expansion_from_its_input() -> None:
    events = [
        event("a", 0, 1, (), (7,)),
        event("a", 1, 2, (), (8,)),
        event("b", 3, 4, (7, 8), (9,)),
        event("b", 4, 5, (), (10,)),  # a further element of the same input
        event("c", 6, 7, (10,)),
    ]
    found = arrows(events, LINE)
    assert sorted(found) == [(0, 2), (0, 3), (1, 2), (1, 3), (3, 4)]
    assert item_numbers(events, found, LINE) == [(0,), (1,), (0, 1), (0, 1), (0, 1)]
    assert item_numbers(events, found, LINE, most=1)[2:] == [(), (), ()]


def test_chains_contain_each_arrow_once() -> None:
    assert chains([(0, 1), (1, 2), (2, 3)]) == [[0, 1, 2, 3]]
    assert chains([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)]) == [[0, 1, 3], [0, 2, 3, 4]]
    assert chains([]) == []
