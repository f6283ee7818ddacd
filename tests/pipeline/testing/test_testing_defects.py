"""The fault harness detects defects, patched into the engine or written into a stage function.

Each graph also runs without its defect and passes.
"""

import itertools
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest

import threadloom.pipeline.run.channel as channel_module
from tests.pipeline.testing.subjects import COUNT, line, plan
from threadloom.pipeline import SKIP, Channel, Graph, Pool, StageFailure
from threadloom.pipeline.policy.admission import FifoState
from threadloom.pipeline.policy.control import RunControl
from threadloom.pipeline.run.commands import Commands
from threadloom.pipeline.run.parking import wake
from threadloom.pipeline.run.worker import StageWorker
from threadloom.pipeline.testing import (
    Fault,
    FaultKind,
    FaultReport,
    InjectedFault,
    ResourceSnapshot,
    Subject,
    exercise,
)

pytestmark = pytest.mark.timeout(60)


# Defects of the engine.

Defect = Callable[[pytest.MonkeyPatch], None]


def drops(patch: pytest.MonkeyPatch) -> None:
    put, numbers = Channel.put, itertools.count(1)  # `next` is atomic: every call gets another number

    def dropping(channel: Channel[Any, Any], item: Any) -> None:
        if next(numbers) != 30:
            put(channel, item)

    patch.setattr(Channel, "put", dropping)


def duplicates(patch: pytest.MonkeyPatch) -> None:
    put, numbers = Channel.put, itertools.count(1)

    def doubling(channel: Channel[Any, Any], item: Any) -> None:
        put(channel, item)
        if next(numbers) == 30:
            put(channel, item)

    patch.setattr(Channel, "put", doubling)


def swaps(patch: pytest.MonkeyPatch) -> None:
    """Channels hand out items of the queue in another order."""
    get = Channel.get

    def swapping(channel: Channel[Any, Any], worker: int = 0) -> Any:
        with channel._lock:
            if channel._plain is not None and len(channel._plain) > 1:
                channel._plain.rotate(1)
        return get(channel, worker)

    patch.setattr(Channel, "get", swapping)


def has_no_bound(patch: pytest.MonkeyPatch) -> None:
    init = Channel.__init__

    def unbounded(channel: Channel[Any, Any], admission: Any, capacity: int, *rest: Any) -> None:
        init(channel, FifoState(10**6), 10**6, *rest)

    patch.setattr(Channel, "__init__", unbounded)


def swallows(patch: pytest.MonkeyPatch) -> None:
    """A worker whose function raises continues as if the item had been skipped."""
    process = StageWorker._process

    def forgiving(worker: StageWorker, fn: Any) -> None:
        def call(*item: Any) -> Any:
            try:
                return fn(*item)
            except InjectedFault:
                return SKIP

        process(worker, call)

    patch.setattr(StageWorker, "_process", forgiving)


def ends_silently(patch: pytest.MonkeyPatch) -> None:
    """A worker that raises ends without reporting its error."""
    patch.setattr(Commands, "fail", lambda commands, failure: None)
    patch.setattr(StageWorker, "_close_outputs", lambda worker: None)


def reports_the_last(patch: pytest.MonkeyPatch) -> None:
    """A later failure replaces the first."""
    stop = RunControl.stop

    def replacing(control: RunControl, outcome: Any) -> Any:
        if isinstance(outcome, StageFailure):
            control.outcome = None
        return stop(control, outcome)

    patch.setattr(RunControl, "stop", replacing)


def loses_a_wake_up(patch: pytest.MonkeyPatch) -> None:
    """`put` and `get` wake no thread; `abort` still wakes all of them."""

    def all_of(queue: Any) -> None:
        while queue:
            wake(queue)

    patch.setattr(channel_module, "wake", lambda queue: None)
    patch.setattr(channel_module, "wake_all", all_of)


def miscounts(patch: pytest.MonkeyPatch) -> None:
    statistics = StageWorker._run_loop

    def twice(worker: StageWorker, *rest: Any) -> None:
        worker.counters.items_in += 1
        statistics(worker, *rest)

    patch.setattr(StageWorker, "_run_loop", twice)


def leaves_a_thread(patch: pytest.MonkeyPatch) -> None:
    run = StageWorker.run

    def lingering(worker: StageWorker) -> None:
        run(worker)
        if worker.stage.name == "one":
            threading.Thread(target=RELEASE.wait, name="forgotten", daemon=True).start()

    patch.setattr(StageWorker, "run", lingering)


RELEASE = threading.Event()
RAISE = Fault("one", 20, FaultKind.RAISE)
SLOW = [Fault("two", at, FaultKind.HOLD, 30) for at in range(4)]
DEFECTS: dict[str, tuple[Defect, list[Fault], str]] = {
    "drops": (drops, [], "did not arrive"),
    "duplicates": (duplicates, [], "more than once"),
    "swaps": (swaps, [], "in the order of sending"),
    "has no bound": (has_no_bound, SLOW, "the bound is"),
    "swallows": (swallows, [RAISE], "got no error"),
    "ends silently": (ends_silently, [RAISE], "no progress"),
    "loses a wake-up": (loses_a_wake_up, [], "no progress"),
    "miscounts": (miscounts, [], "count 61 items in; the journal has 60"),
    "leaves a thread": (leaves_a_thread, [], "left behind: a thread: forgotten"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_of_the_engine_is_detected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect, faults, text = DEFECTS[name]
    exercise(line(), plan(*faults)).check()
    defect(monkeypatch)
    RELEASE.clear()
    try:
        report = exercise(line(), plan(*faults), limit=0.5, grace=0.2)
    finally:
        RELEASE.set()
    assert any(text in each for each in report.broken), report.broken


def test_a_consequence_reported_as_the_first_error_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage raises after the failure of the first has ended the run."""

    def report_of() -> FaultReport:
        graph = Graph("two errors")
        source = graph.source("draw", lambda: iter(range(1000)))
        ended = threading.Event()

        class Resource:
            def abort(self) -> None:
                ended.set()

        graph.stage("one", lambda item: item, after=source)
        graph.stage("two", lambda item: ended.wait(30), after=source)
        faults = plan(Fault("one", 3, FaultKind.RAISE), Fault("two", 0, FaultKind.RAISE, after=True))
        return exercise(Subject(graph, [Resource()]), faults)

    first = report_of().check()
    assert isinstance(first.error, StageFailure)
    assert first.error.stage == "one"
    reports_the_last(monkeypatch)
    assert any("a consequence" in each for each in report_of().broken)


# Defects of stage functions: resources left behind.


def forgets_a_slot(pool: Pool[int], item: int) -> int:
    element = pool.take()
    if item != 1059:
        pool.give_back(element)
    return item


def test_a_slot_that_is_not_returned_is_detected() -> None:
    pool = Pool(range(2))
    graph = Graph("slots")
    numbers = graph.source("draw", range(1000, 1000 + COUNT))
    graph.stage("one", lambda item: forgets_a_slot(pool, item), after=numbers)
    assert exercise(Subject(graph, [pool])).broken == ("1 element(s) of a pool were not returned",)


@pytest.fixture
def held() -> Iterator[list[Callable[[], object]]]:
    """Functions, called after the test, that release the resources that a stage has leaked on purpose."""
    endings: list[Callable[[], object]] = []
    yield endings
    for each in endings:
        each()


def opens_a_file(held: list[Callable[[], object]]) -> None:
    descriptor = os.open(__file__, os.O_RDONLY)
    held.append(lambda: os.close(descriptor))


def starts_a_process(held: list[Callable[[], object]]) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held.append(lambda: child.communicate(b"\n"))


def makes_a_segment(held: list[Callable[[], object]]) -> None:
    segment = shared_memory.SharedMemory(create=True, size=64)
    held.extend([segment.close, segment.unlink])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="held resources are read from /proc")
@pytest.mark.parametrize(
    ("leak", "text"),
    [
        (opens_a_file, "file descriptor"),
        (starts_a_process, "child process"),
        (makes_a_segment, "shared-memory segment"),
    ],
)
def test_resources_that_a_stage_leaves_open_are_detected(
    leak: Callable[[list[Callable[[], object]]], None], text: str, held: list[Callable[[], object]]
) -> None:
    graph = Graph("leak")
    graph.stage("one", lambda item: leak(held), after=graph.source("draw", range(1)))
    report = exercise(graph)
    assert any(each.startswith(f"left behind: a {text}") for each in report.broken), report.broken


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="segments are listed from /dev/shm")
def test_a_segment_of_another_process_is_not_counted() -> None:
    before = ResourceSnapshot.now()
    program = (
        "from multiprocessing.shared_memory import SharedMemory\n"
        "segment = SharedMemory(create=True, size=64)\n"
        "print(segment.name, flush=True)\n"
        "input()\n"
        "segment.close(), segment.unlink()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert name in ResourceSnapshot.now().segments
        assert "shared-memory segment" not in ResourceSnapshot.now().since(before)
        with Path("/dev/shm", name).open("r+b") as file, mmap.mmap(file.fileno(), 0):
            assert ResourceSnapshot.now().since(before)["shared-memory segment"] == [name]
        other.communicate("\n")
