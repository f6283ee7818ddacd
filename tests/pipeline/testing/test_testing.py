"""The fault harness: plans take effect, correct graphs pass, and a failure includes the code that repeats it."""

import threading
from dataclasses import replace

import pytest

from tests.pipeline.testing.subjects import COUNT, line, plan
from threadloom.pipeline import (
    AdmissionError,
    Cancelled,
    Closed,
    Graph,
    InOrder,
    OnFailure,
    Retry,
    SkipFailed,
    StageFailure,
)
from threadloom.pipeline.run.commands import Commands
from threadloom.pipeline.testing import (
    Fault,
    FaultKind,
    FaultPlan,
    InjectedFault,
    InvariantBroken,
    Subject,
    exercise,
    hammer,
    journal,
)
from threadloom.pipeline.testing.faults import PolicyFault

pytestmark = pytest.mark.timeout(60)


# Plans and their effects.


def test_a_plan_is_a_function_of_its_seed_and_its_repr_is_python() -> None:
    graph = line().graph
    plans = [FaultPlan.random(graph, seed) for seed in range(50)]
    assert plans == [FaultPlan.random(graph, seed) for seed in range(50)]
    assert len(set(map(repr, plans))) > 25
    kinds = {fault.kind for each in plans for fault in each.faults}
    assert kinds == set(FaultKind) - {FaultKind.KILL, FaultKind.RESIZE}  # processes, and several workers, only
    assert [eval(repr(each), globals()) for each in plans] == plans  # noqa: S307
    assert {each.on_failure for each in plans} == set(OnFailure)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("tow", 0, FaultKind.RAISE), "no stage 'tow'"),
        (Fault("two", 0, FaultKind.LEAVE), "cannot occur at a stage"),
        (Fault("out", 0, FaultKind.EXIT), "cannot occur at a sink"),
    ],
)
def test_a_fault_that_cannot_occur_is_rejected(fault: Fault, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exercise(line(), plan(fault))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [0, COUNT - 1])
@pytest.mark.parametrize("stage", ["draw", "one", "two"])
@pytest.mark.parametrize("kind", [FaultKind.RAISE, FaultKind.EXIT, FaultKind.CANCEL, FaultKind.INTERRUPT])
def test_a_fault_that_stops_a_run_occurs_at_its_call(kind: FaultKind, stage: str, at: int, after: bool) -> None:
    report = exercise(line(), plan(Fault(stage, at, kind, after=after))).check()
    assert [fired.fault.stage for fired in report.fired] == [stage]
    match kind:
        case FaultKind.RAISE | FaultKind.EXIT:
            assert isinstance(report.error, StageFailure)
            assert report.error.stage == stage
            assert type(report.error.__cause__) is (InjectedFault if kind is FaultKind.RAISE else SystemExit)
            assert len(report.delivered["out"]) <= at
        case FaultKind.CANCEL:
            assert isinstance(report.error, Cancelled)
        case _:
            assert isinstance(report.error, KeyboardInterrupt)


@pytest.mark.parametrize("kind", [FaultKind.RAISE, FaultKind.CANCEL, FaultKind.INTERRUPT, FaultKind.LEAVE])
def test_faults_of_the_caller_at_a_sink(kind: FaultKind) -> None:
    report = exercise(line(), plan(Fault("out", 7, kind))).check()
    wanted = {
        FaultKind.RAISE: InjectedFault,
        FaultKind.CANCEL: Cancelled,
        FaultKind.INTERRUPT: KeyboardInterrupt,
        FaultKind.LEAVE: type(None),
    }
    assert type(report.error) is wanted[kind]
    if kind is not FaultKind.CANCEL:
        assert report.delivered["out"] == list(range(3000, 3008))


@pytest.mark.parametrize("stage", ["draw", "one", "out"])
@pytest.mark.parametrize("kind", [FaultKind.FINALISER, FaultKind.DROP, FaultKind.FORK])
def test_faults_that_must_not_change_the_result(kind: FaultKind, stage: str) -> None:
    report = exercise(line(), plan(Fault(stage, 7, kind, 50))).check()
    assert len(report.fired) == 1
    assert report.error is None
    assert report.delivered["out"] == list(range(3000, 3000 + COUNT))


def test_a_stage_is_resized_and_a_source_drained() -> None:
    report = exercise(line(workers=2), plan(Fault("one", 3, FaultKind.RESIZE, 4))).check()
    assert report.statistics["one"].workers == 4
    assert len(report.delivered["out"]) == COUNT
    report = exercise(line(), plan(Fault("draw", 10, FaultKind.DRAIN))).check()
    assert report.error is None
    assert report.delivered["out"] == list(range(3000, 3011))


def test_a_policy_that_raises_ends_the_run() -> None:
    subject = line()
    one = subject.graph.stages[1]
    subject.graph.replace_stage(replace(one, on_error=Retry(times=2, then=SkipFailed())))
    report = exercise(subject, plan(Fault("one", 4, FaultKind.POLICY))).check()
    assert isinstance(report.error, StageFailure)
    assert isinstance(report.error.__cause__, PolicyFault)


def test_a_child_that_can_use_the_run_of_its_parent_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Commands, "check_process", lambda commands: None)
    report = exercise(line(), plan(Fault("one", 4, FaultKind.FORK)))
    assert any("which no fault caused" in each for each in report.broken), report.broken


def test_a_hold_lets_other_items_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold ends by its events alone: on a busy machine none may occur for longer than usual."""
    monkeypatch.setattr(journal, "QUIET", 30.0)
    subject = line(workers=2)
    report = exercise(subject, plan(Fault("one", 0, FaultKind.HOLD, 25))).check()
    assert report.error is None
    place = report.delivered["out"].index(3000) if report.delivered["out"][0] != 3000 else 0
    assert place > 0, "nothing overtook the first item"


def test_delays_and_slow_consumers_do_not_change_the_result() -> None:
    faults = [
        Fault("one", 3, FaultKind.DELAY, 1),
        Fault("out", 0, FaultKind.DELAY, 1),
        Fault("out", 5, FaultKind.HOLD, 9),
    ]
    report = exercise(line(), plan(*faults)).check()
    assert report.error is None
    assert len(report.fired) == 3
    assert report.delivered["out"] == list(range(3000, 3000 + COUNT))


def test_an_interrupt_needs_the_main_thread() -> None:
    caught: list[BaseException] = []

    def elsewhere() -> None:
        try:
            exercise(line(), plan(Fault("one", 1, FaultKind.INTERRUPT)))
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_hammer_tries_each_seed_and_names_the_one_that_breaks() -> None:
    assert len(hammer(line, range(20))) == 20

    def wrong() -> Subject:
        subject = line()
        return Subject(subject.graph, expected={"out": range(3000, 3000 + COUNT + 1)})

    with pytest.raises(InvariantBroken, match=r"repeat with: hammer\(wrong, \[0\]\)") as caught:
        hammer(wrong, [0], most=0)
    assert "did not deliver {3060: 1}" in str(caught.value)


def test_an_order_that_cannot_be_kept_is_an_expected_error_of_the_graph() -> None:
    graph = Graph("gap")
    order = InOrder[int](lambda item: (0, item))
    graph.sink("out", after=graph.source("draw", [0, 2]), admission=order)
    report = exercise(Subject(graph, may_raise=(AdmissionError,))).check()
    assert isinstance(report.error, StageFailure)
    assert exercise(graph).broken


def test_closed_raised_by_a_stage_is_an_error_like_any_other() -> None:
    """Channels raise Closed at the end of the input; raised by a function it must not be mistaken for that."""

    def closing(item: int) -> int:
        if item == 3:
            raise Closed
        return item

    graph = Graph("closing")
    graph.sink("out", after=graph.stage("one", closing, after=graph.source("draw", range(10))))
    report = exercise(Subject(graph, may_raise=(Closed,))).check()
    assert isinstance(report.error, StageFailure)
