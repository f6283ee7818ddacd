"""Tests of LaneOrder, by events."""

from typing import Any

import pytest
from hypothesis import given, strategies as st

from threadloom.pipeline import AdmissionError, LaneOrder, LanePlan

Place = tuple[int, int]


def begin(plan: LanePlan, capacity: int = 2) -> Any:
    return LaneOrder(plan, lambda place: place).begin(capacity)


def put(state: Any, place: Place) -> None:
    assert state.fits(state.ticket(place))
    state.put(state.ticket(place), place)


def test_a_lane_is_taken_in_order_by_one_worker() -> None:
    state = begin(LanePlan(1, 2))
    put(state, (0, 1))
    assert not state.ready()
    put(state, (0, 0))
    assert state.take(worker=0) == (0, 0)
    assert not state.ready(), "a worker holds a micro-batch of the lane"
    state.done(worker=0)
    assert state.take(worker=0) == (0, 1)


def test_a_shared_lane_is_taken_in_order_by_several_workers() -> None:
    state = LaneOrder(LanePlan(1, 3), lambda place: place, shared=True).begin(2)
    put(state, (0, 1))
    assert not state.ready()
    put(state, (0, 0))
    assert [state.take(worker=0), state.take(worker=1)] == [(0, 0), (0, 1)]
    put(state, (1, 0))
    assert not state.ready(), "the last micro-batch of batch 0 has not been taken"
    put(state, (0, 2))
    assert state.take(worker=2) == (0, 2)
    assert state.take(worker=3) == (1, 0)
    assert state.in_hand() == 4


def test_no_batch_is_taken_before_all_of_its_predecessor() -> None:
    state = begin(LanePlan(2, 2))
    put(state, (0, 0))
    put(state, (1, 0))
    assert state.take(worker=0) == (0, 0)
    state.done(worker=0)
    assert not state.ready(), "its worker would wait for the reduction of batch 0, with no worker left to complete it"
    put(state, (0, 1))
    assert state.take(worker=0) == (0, 1)
    state.done(worker=0)
    assert state.take(worker=0) == (1, 0)


def test_a_full_channel_accepts_the_next_item_of_a_lane() -> None:
    state = begin(LanePlan(2, 4), capacity=2)
    put(state, (0, 2))
    put(state, (0, 3))
    assert not state.fits((1, 0))
    put(state, (0, 1))
    put(state, (0, 0))
    assert state.depth() == 4


def test_duplicates_and_an_incomplete_batch_are_errors() -> None:
    state = begin(LanePlan(1, 2))
    put(state, (0, 0))
    with pytest.raises(AdmissionError, match="duplicate micro-batch 0 of batch 0"):
        state.put((0, 0), (0, 0))
    state.take(worker=0)
    state.done(worker=0)
    with pytest.raises(AdmissionError, match="lane 0 waits for micro-batch 1 of batch 0"):
        state.finish()


@given(st.data(), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 5))
def test_each_lane_is_in_order_for_any_order_of_arrival(
    data: st.DataObject, lanes: int, extra: int, batches: int, workers: int
) -> None:
    plan = LanePlan(lanes, lanes + extra)
    waiting = data.draw(st.permutations([(b, m) for b in range(batches) for m in range(plan.micro_batches)]))
    state, taken, hands = begin(plan, capacity=1), [], dict[int, Place]()
    while waiting or state.depth() or hands:
        fitting = [place for place in waiting if state.fits(place)]
        events = ["put"] * bool(fitting) + ["done"] * bool(hands)
        events += ["take"] * (state.ready() and len(hands) < workers)
        event = data.draw(st.sampled_from(events))  # never empty: the policy cannot deadlock
        if event == "put":
            place = data.draw(st.sampled_from(fitting))
            put(state, place)
            waiting = [other for other in waiting if other != place]
            assert state.depth() <= 1 + lanes
        elif event == "take":
            worker = next(w for w in range(workers) if w not in hands)
            hands[worker] = state.take(worker)
            taken.append(hands[worker])
            assert len({plan.lane_of(micro) for _, micro in hands.values()}) == len(hands)
        else:
            worker = data.draw(st.sampled_from(sorted(hands)))
            state.done(worker)
            del hands[worker]
    state.finish()
    for lane in range(lanes):
        order = [place for place in taken if plan.lane_of(place[1]) == lane]
        assert order == sorted(order)
    assert [batch for batch, _ in taken] == sorted(batch for batch, _ in taken)
