"""Tests of the admission policies as state machines, without threads."""

from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from threadloom.pipeline import AdmissionError, Fifo, Gather, InOrder
from threadloom.pipeline.policy.admission import Admission

CAPACITY = 2
Pair = tuple[str, int]


def pair_order(**settings: Any) -> Admission[Pair, Pair]:
    return InOrder[Pair](order=lambda item: item, **settings).begin(CAPACITY)


def put(state: Admission[Any, Any], *items: Any) -> None:
    for item in items:
        ticket = state.ticket(item)
        assert state.fits(ticket)
        state.put(ticket, item)


def fits(state: Admission[Any, Any], item: Any) -> bool:
    return state.fits(state.ticket(item))


def take_all(state: Admission[Any, Any]) -> list[Any]:
    taken = []
    while state.ready():
        taken.append(state.arrange(state.take(0)))
        state.done(0)
    return taken


def test_fifo_is_a_bounded_queue() -> None:
    state = Fifo().begin(CAPACITY)
    put(state, "a", "b")
    assert not fits(state, "c")
    assert take_all(state) == ["a", "b"]


def test_in_order_accepts_the_next_item_when_full() -> None:
    state = pair_order()
    put(state, ("k", 1), ("k", 2))
    assert not state.ready()
    assert not fits(state, ("k", 3))
    put(state, ("k", 0))
    assert state.depth() == CAPACITY + 1
    assert take_all(state) == [("k", 0), ("k", 1), ("k", 2)]


def test_exclusive_allows_one_item_per_key_at_a_time() -> None:
    state = pair_order()
    put(state, ("k", 0), ("k", 1))
    assert state.take(0) == ("k", 0)
    assert not state.ready()
    assert state.in_hand() == 1
    put(state, ("other", 0))
    assert state.take(1) == ("other", 0)
    state.done(0)
    assert state.take(0) == ("k", 1)


def test_without_exclusive_several_workers_share_a_key() -> None:
    state = pair_order(exclusive=False)
    put(state, ("k", 0), ("k", 1))
    assert [state.take(0), state.take(1)] == [("k", 0), ("k", 1)]


@pytest.mark.parametrize("first", [5, {"k": 5}, lambda key: 5 if key == "k" else 0])
def test_in_order_starts_at_first(first: Any) -> None:
    state = pair_order(first=first)
    put(state, ("k", 6), ("k", 5))
    assert take_all(state) == [("k", 5), ("k", 6)]


def test_a_gap_at_the_end_of_the_input_is_an_error() -> None:
    state = pair_order()
    put(state, ("k", 1))
    with pytest.raises(AdmissionError, match="key 'k' waits for item 0 and holds 1"):
        state.finish()


@pytest.mark.parametrize("again", [("k", 0), ("k", 2)])
def test_a_duplicate_item_is_rejected(again: Pair) -> None:
    state = pair_order()
    put(state, ("k", 0))
    take_all(state)
    put(state, ("k", 2))
    with pytest.raises(AdmissionError, match="duplicate item"):
        put(state, again)


def test_count_drops_complete_keys_and_reports_incomplete_ones() -> None:
    state = pair_order(count=2)
    put(state, ("k", 0), ("k", 1))
    take_all(state)
    state.finish()
    put(state, ("short", 0))
    take_all(state)
    with pytest.raises(AdmissionError, match="key 'short' waits for item 1"):
        state.finish()


def test_gather_counts_complete_groups_against_the_capacity() -> None:
    state = Gather[Pair](key=lambda item: item[0], count=2).begin(CAPACITY)
    put(state, ("open", 0), ("a", 0), ("a", 1), ("b", 0), ("b", 1))
    assert state.depth() == CAPACITY
    assert not fits(state, ("new", 0))
    put(state, ("open", 1))
    assert take_all(state) == [[("a", 0), ("a", 1)], [("b", 0), ("b", 1)], [("open", 0), ("open", 1)]]


def test_gather_keeps_the_order_of_arrival_unless_sorted() -> None:
    arrival, ordered = (Gather[int](count=3, sort=sort).begin(1) for sort in (None, lambda item: item))
    for state in (arrival, ordered):
        put(state, 2, 0, 1)
    assert take_all(arrival) == [[2, 0, 1]]
    assert take_all(ordered) == [[0, 1, 2]]


def test_an_incomplete_group_is_an_error_or_is_taken_with_partial() -> None:
    strict, partial = (Gather[Pair](lambda item: item[0], 3, partial=partial).begin(1) for partial in (False, True))
    for state in (strict, partial):
        put(state, ("a", 0), ("b", 0), ("b", 1))
    with pytest.raises(AdmissionError, match="expected 3 items each, but key 'a' has 1, 'b' has 2"):
        strict.finish()
    partial.finish()
    assert take_all(partial) == [[("a", 0)], [("b", 0), ("b", 1)]]


def test_counts_below_one_are_rejected() -> None:
    with pytest.raises(ValueError, match="Gather: expected count >= 1, got 0"):
        Gather[int](count=0)
    with pytest.raises(ValueError, match="InOrder: expected count >= 1 or None, got 0"):
        InOrder[Pair](order=lambda item: item, count=0)


class InOrderMachine(RuleBasedStateMachine):
    """Senders put items in any order; workers take and finish items at any time."""

    @initialize(
        keys=st.integers(1, 3), length=st.integers(1, 6), capacity=st.integers(1, 3), exclusive=st.booleans(),
        seed=st.randoms(use_true_random=False),
    )  # fmt: skip
    def begin(self, keys: int, length: int, capacity: int, exclusive: bool, seed: Any) -> None:
        self.keys, self.length, self.capacity, self.exclusive = keys, length, capacity, exclusive
        self.state = InOrder[tuple[int, int]](order=lambda item: item, exclusive=exclusive).begin(capacity)
        self.outside = [(key, index) for key in range(keys) for index in range(length)]
        seed.shuffle(self.outside)
        self.hands: dict[int, tuple[int, int]] = {}
        self.taken: dict[int, list[int]] = defaultdict(list)

    @rule(data=st.data())
    def put_an_item(self, data: st.DataObject) -> None:
        fitting = [item for item in self.outside if fits(self.state, item)]
        # The next item of a key always fits.
        awaited = {(key, len(self.taken[key])) for key in range(self.keys)}
        assert awaited & set(self.outside) <= set(fitting)
        if fitting:
            item = data.draw(st.sampled_from(fitting))
            self.outside.remove(item)
            put(self.state, item)

    @precondition(lambda self: self.state.ready())
    @rule(data=st.data())
    def take_an_item(self, data: st.DataObject) -> None:
        idle = [worker for worker in range(3) if worker not in self.hands]
        if idle:
            worker = data.draw(st.sampled_from(idle))
            item = self.state.take(worker)
            if self.exclusive:
                assert item[0] not in [held[0] for held in self.hands.values()]
            self.hands[worker] = item
            self.taken[item[0]].append(item[1])

    @precondition(lambda self: self.hands)
    @rule(data=st.data())
    def finish_an_item(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.hands)))
        del self.hands[worker]
        self.state.done(worker)

    @invariant()
    def in_order_and_bounded(self) -> None:
        if not hasattr(self, "state"):
            return
        assert all(indices == list(range(len(indices))) for indices in self.taken.values())
        assert self.state.depth() <= self.capacity + self.keys

    def teardown(self) -> None:
        if hasattr(self, "state"):
            for worker in list(self.hands):
                self.state.done(worker)
            while self.outside or self.state.ready():
                for item in [item for item in self.outside if fits(self.state, item)]:
                    if fits(self.state, item):
                        self.outside.remove(item)
                        put(self.state, item)
                for key, index in take_all(self.state):
                    self.taken[key].append(index)
            self.state.finish()
            assert all(self.taken[key] == list(range(self.length)) for key in range(self.keys))


class GatherMachine(RuleBasedStateMachine):
    """Items of several keys in any order: each group is taken once, complete, in the order of completion."""

    @initialize(count=st.integers(1, 4), capacity=st.integers(1, 3))
    def begin(self, count: int, capacity: int) -> None:
        self.count, self.capacity = count, capacity
        self.state = Gather[tuple[int, int]](key=lambda item: item[0], count=count).begin(capacity)
        self.open: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.complete: deque[list[tuple[int, int]]] = deque()
        self.serial = 0

    @rule(key=st.integers(0, 4))
    def put_an_item(self, key: int) -> None:
        joins = bool(self.open[key])
        item = (key, self.serial)
        ticket = self.state.ticket(item)
        assert self.state.fits(ticket) == (joins or len(self.complete) < self.capacity)
        if self.state.fits(ticket):
            self.serial += 1
            self.state.put(ticket, item)
            self.open[key].append(item)
            if len(self.open[key]) == self.count:
                self.complete.append(self.open.pop(key))

    @rule()
    def take_a_group(self) -> None:
        assert self.state.ready() == bool(self.complete)
        if self.complete:
            assert self.state.take(0) == self.complete.popleft()

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "state"):
            assert self.state.depth() == len(self.complete) <= self.capacity + 5


TestInOrderMachine = InOrderMachine.TestCase
TestGatherMachine = GatherMachine.TestCase
