"""Threads that share a lane: the order of accumulation, deferred gradients, and the end of a run."""

import threading
from typing import Any

import numpy as np
import pytest

from tests.stages.support import WAIT, build, result, run_sequence, run_threads, tiny
from tests.stages.training.twin import SMALL_STEPS, assert_expected, expectation
from threadloom.kernels.common.accumulation import (
    AccumulationTicket,
    mark_part_done,
    model_parts,
    single_writer,
    wait_for_predecessor,
)
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.pipeline import LanePlan, Lanes, StageFailure
from threadloom.stages.memory.ordered_accumulation import OrderedAccumulation
from threadloom.stages.models import Geometry, parameter_shapes

pytestmark = pytest.mark.timeout(60)

GEOMETRY = Geometry(vocabulary=11, context=5, layers=2, heads=1, channels=7)
PARTS = model_parts(GEOMETRY.vocabulary, GEOMETRY.layers)
SHARED = ("shared_lanes=true", "threads.backward=3", "threads.forward=2", "slots=4")


def make(lanes: int = 1, micro_batches: int = 3) -> OrderedAccumulation:
    return OrderedAccumulation(GEOMETRY, Lanes(parameter_shapes(GEOMETRY), LanePlan(lanes, micro_batches)), sequences=2)


def passes(accumulation: OrderedAccumulation, batch: int, micro: int, part: int) -> bool:
    """Return True if a micro-batch could add to a part now without waiting."""
    ticket = accumulation.ticket(batch, micro)
    return int(ticket.predecessor_count[0]) > ticket.base + part


def test_a_part_is_free_once_the_predecessor_has_added_to_it() -> None:
    accumulation = make()
    assert all(passes(accumulation, 0, 0, part) for part in range(PARTS)), "the first micro-batch never waits"
    for part in range(PARTS):
        assert not passes(accumulation, 0, 1, part)
        mark_part_done(accumulation.ticket(0, 0), part)
        assert passes(accumulation, 0, 1, part)
        assert not passes(accumulation, 0, 2, part), "it comes after the second"


def test_a_batch_begins_with_no_part_done() -> None:
    accumulation = make()
    for micro in range(3):
        for part in range(PARTS):
            mark_part_done(accumulation.ticket(0, micro), part)
    assert passes(accumulation, 1, 0, PARTS - 1)
    assert not any(passes(accumulation, 1, micro, part) for micro in (1, 2) for part in range(PARTS))


def test_a_head_of_several_parts_has_a_part_for_each_slice_of_the_vocabulary() -> None:
    assert [model_parts(vocabulary, 1) for vocabulary in (1, 4096, 4097, 50257)] == [3, 3, 4, 15]


def test_lanes_do_not_wait_for_one_another() -> None:
    accumulation = make(lanes=2, micro_batches=4)
    assert passes(accumulation, 0, 0, PARTS - 1)
    assert passes(accumulation, 0, 1, PARTS - 1)
    mark_part_done(accumulation.ticket(0, 1), 0)
    assert passes(accumulation, 0, 3, 0)
    assert not passes(accumulation, 0, 2, 0)


def test_a_kernel_waits_for_its_predecessor() -> None:
    accumulation, log, begun = make(), [], threading.Event()

    def follow() -> None:
        begun.set()
        wait_for_predecessor(accumulation.ticket(0, 1), 0)
        log.append("second")

    thread = threading.Thread(target=follow)
    thread.start()
    assert begun.wait(WAIT)
    thread.join(0.05)
    assert thread.is_alive()
    log.append("first")
    mark_part_done(accumulation.ticket(0, 0), 0)
    thread.join(WAIT)
    assert log == ["first", "second"]


def test_an_abort_ends_waits() -> None:
    accumulation = make()
    thread = threading.Thread(target=wait_for_predecessor, args=(accumulation.ticket(0, 1), 0))
    thread.start()
    assert not accumulation.stopped
    accumulation.abort()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert accumulation.stopped


def test_a_single_writer_never_waits() -> None:
    ticket = single_writer(accumulate=True)
    for part in range(100):
        wait_for_predecessor(ticket, part)
        mark_part_done(ticket, part)


def test_deferred_gradients_are_scattered_in_the_order_of_the_micro_batches() -> None:
    """The gradients differ in magnitude, so that float32 sums depend on their order."""
    shapes, plan = parameter_shapes(GEOMETRY), LanePlan(2, 4)
    lanes = Lanes(shapes, plan)
    accumulation, rows = OrderedAccumulation(GEOMETRY, lanes, sequences=2), 2 * GEOMETRY.context
    rng = np.random.default_rng(0)
    ids = rng.integers(0, GEOMETRY.vocabulary, (4, rows)).astype(np.int32)
    dx = (rng.standard_normal((4, rows, GEOMETRY.channels)) * 10.0 ** rng.integers(-3, 4, (4, rows, 1))).astype("f4")
    for micro in (2, 0, 3, 1):
        accumulation.defer(micro, ids[micro], NO_BORDERS, dx[micro])
    lanes.flat[:] = 1.0  # wte has the head's gradient already; wpe is overwritten
    accumulation.scatter_deferred()
    for lane, arena in enumerate(lanes.arenas):
        wte, wpe = np.ones((11, 7), np.float32), np.zeros((5, 7), np.float32)
        for micro in (lane, lane + 2):
            for r in range(rows):
                wte[ids[micro, r]] += dx[micro, r]
                wpe[r % 5] += dx[micro, r]
        np.testing.assert_array_equal(arena["wte"], wte)
        np.testing.assert_array_equal(arena["wpe"], wpe)


def test_a_shared_lane_has_another_trajectory_within_the_bounds_of_separate_lanes() -> None:
    trainings = [build(tiny("lanes=1", "steps=3", *SMALL_STEPS, *shared)) for shared in (SHARED, ())]
    expected = expectation(trainings[0])
    results = []
    for training in trainings:
        events = run_sequence(training)
        assert_expected(training, events, expected)
        results.append(result(training, events))
    assert results[0].updates != results[1].updates, "the embedding's gradient is summed in another order"


def test_consecutive_micro_batches_are_in_backward_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second micro-batch of a lane enters backward before the first has left it."""
    training = build(tiny("lanes=1", "steps=1", *SHARED))
    both, inside = threading.Event(), list[None]()
    compute = training.compute.backward

    def backward(*args: Any) -> float:
        inside.append(None)
        if len(inside) == 2:
            both.set()
        assert both.wait(WAIT)
        return compute(*args)

    monkeypatch.setattr(training.compute, "backward", backward)
    run_threads(training)
    assert len(inside) == training.plan.micro_batches


def test_an_error_ends_a_run_whose_other_threads_wait_for_the_failed_micro_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = build(tiny("lanes=1", "steps=2", *SHARED))
    second = threading.Event()
    compute = training.compute.backward

    def backward(*args: Any) -> float:
        ticket = next(argument for argument in args if isinstance(argument, AccumulationTicket))
        if ticket.predecessor_count[0] > PARTS:  # the first of its lane
            assert second.wait(WAIT)
            raise ValueError("on purpose")
        second.set()
        return compute(*args)  # waits for the first one until the abort

    monkeypatch.setattr(training.compute, "backward", backward)
    with pytest.raises(StageFailure) as caught:
        run_threads(training)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.stage == "backward"
