"""Faults at process stages: a killed worker process leaves nothing behind, and its items are accounted for.

Spawning a process takes a fraction of a second, so there are few tests here.
"""

import operator
from functools import partial

import pytest

from threadloom.pipeline import Graph, OnProcesses, StageFailure, WorkerDied, on_processes
from threadloom.pipeline.testing import Fault, FaultKind, FaultPlan, Subject, exercise, hammer

pytestmark = pytest.mark.timeout(120)

COUNT = 40
KINDS = frozenset({FaultKind.KILL, FaultKind.CANCEL, FaultKind.INTERRUPT})


def negating(chunk: int = 1) -> Subject:
    graph = Graph("negating")
    numbers = graph.source("draw", lambda: iter(range(1000, 1000 + COUNT)))
    work: OnProcesses[int, int] = on_processes(operator.neg, chunk=chunk)
    graph.sink("out", after=graph.stage("negate", work, after=numbers, workers=2, ordered=True))
    return Subject(
        graph, [work], expected={"out": [-number for number in range(1000, 1000 + COUNT)]}, ordered=frozenset({"out"})
    )


@pytest.mark.parametrize("fault", [Fault("negate", 0, FaultKind.KILL), Fault("negate", 7, FaultKind.KILL, 0.2)])
def test_a_killed_process_is_the_first_error_of_the_run(fault: Fault) -> None:
    report = exercise(negating(), FaultPlan((fault,))).check()
    assert [fired.fault for fired in report.fired] == [fault]
    if fault.amount == 0:
        assert isinstance(report.error, StageFailure)
        assert isinstance(report.error.__cause__, WorkerDied)
        assert report.error.stage == "negate"


def test_a_kill_after_the_last_item_may_or_may_not_fail_the_run() -> None:
    report = exercise(negating(), FaultPlan((Fault("negate", COUNT - 1, FaultKind.KILL, after=True),))).check()
    assert len(report.fired) == 1


def test_process_stages_under_random_faults() -> None:
    reports = hammer(negating, range(4), calls=COUNT, kinds=KINDS)
    reports += hammer(partial(negating, 5), range(6, 9), calls=COUNT, kinds=KINDS)
    assert any(fired.fault.kind is FaultKind.KILL for report in reports for fired in report.fired)


def test_only_a_process_can_be_killed() -> None:
    with pytest.raises(ValueError, match="cannot occur at a source"):
        exercise(negating(), FaultPlan((Fault("draw", 0, FaultKind.KILL),)))
