"""Process stages: values, arrays and functions that are sent. Failures are tested in test_processes_failures."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.pipeline.processes import process_work as work
from tests.pipeline.processes.process_work import act
from threadloom.pipeline import Graph, Node, OnProcesses, PipelineError, StageFailure, on_processes, per_worker
from threadloom.pipeline.core.shared import SharedPool, slot_of
from threadloom.pipeline.processes import child_main
from threadloom.pipeline.testing import ResourceSnapshot

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def actor() -> Iterator[Any]:
    """A worker process that executes jobs, shared by all tests that leave it intact."""
    with on_processes(act).worker() as worker:
        yield worker


def test_each_worker_has_its_own_process() -> None:
    graph = Graph("named")
    pids = graph.stage("work", on_processes(work.pid_of), after=graph.source("draw", range(6)), workers=2)
    graph.sink("out", after=pids)
    with graph.start() as run:
        seen = list(run)
    assert len(seen) == 6
    assert os.getpid() not in seen
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen)


def test_the_state_of_a_process_is_flushed() -> None:
    def pairs(items: list[int]) -> list[Any]:
        graph = Graph("pairs", on_failure="drain")
        node = graph.stage("pair", on_processes(work.Pairs()), after=graph.source("draw", items))
        graph.sink("out", after=node)
        return list(graph)

    assert pairs([0, 1, 2]) == [[0, 1], [2]]
    with pytest.raises(StageFailure, match="failed on flush: ValueError: negative"):
        pairs([-1])


def test_a_process_works_and_ends_without_the_calls_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with on_processes(work.pid_of).worker() as worker:
        assert worker(0) not in (0, os.getpid())


def test_without_prctl_a_process_waits_for_the_end_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, ended = threading.Event(), threading.Event()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        ended.set()

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("multiprocess.parent_process", lambda: SimpleNamespace(join=parent.wait))
    monkeypatch.setattr(os, "_exit", leave)
    child_main._end_with(os.getpid(), "worker")
    assert not statuses
    parent.set()
    assert ended.wait(30)
    assert statuses == [1]


def test_a_graph_can_be_run_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with SharedPool.of(4, (1024,)) as pool:

        def draw() -> Iterator[work.Floats]:
            for number in range(6):
                yield pool.copy(np.full(1024, number, np.float32))

        graph = Graph("twice")
        doubled = graph.stage("double", on_processes(work.double), after=graph.source("draw", draw))
        graph.sink("out", after=graph.stage("again", on_processes(work.double), after=doubled))
        counts, before = [], ResourceSnapshot.now()
        for _ in range(2):
            with graph.start(resources=[pool]) as run:
                assert [float(array[-1]) for array in run] == [4.0 * number for number in range(6)]
            counts.append(len(os.listdir("/proc/self/fd")))
            assert pool.statistics().lent == 0
        assert counts[0] == counts[1]
        assert "shared-memory segment" not in ResourceSnapshot.now().since(before)


def test_types_are_inferred(actor: Any) -> None:
    graph = Graph("typed")
    numbers: Node[int] = graph.source("numbers", range(3))
    doubled: Node[int] = graph.stage("double", on_processes(work.double_exact), after=numbers)
    digits: Node[int] = graph.stage("spell", on_processes(work.spell), after=doubled, expand=True)
    graph.sink("out", after=digits)
    with graph.start() as run:
        assert list(run) == [0, 2, 4]


@pytest.mark.parametrize(
    "value", [None, 3, "word", b"x" * 300_000, {"a": [1, (2, 3)]}, np.arange(5), np.array([1, "x"], object)]
)
def test_plain_values_are_sent_unchanged(actor: Any, value: Any) -> None:
    answer = actor(("return", value))
    assert type(answer) is type(value)
    assert np.array_equal(answer, value) if isinstance(value, np.ndarray) else answer == value


def test_skip_generators_lambdas_and_children_of_the_process(actor: Any) -> None:
    from threadloom.pipeline import SKIP

    assert actor(("skip", None)) is SKIP
    assert actor(("lambda", 5))() == 5
    generated = actor(("lambda", "generator"))
    assert next(iter(generated))() == "generator"
    assert actor(("subprocess", "hello")) == "hello"


def test_shared_arrays_are_sent_without_copying(actor: Any) -> None:
    with SharedPool.of(2, (6, 8)) as pool:
        array = pool.copy(np.arange(48, dtype=np.float32).reshape(6, 8))
        arrays = [array, array[1:, ::-2].T, array.view(np.int32)[2], array.view(">f4"), array[:0]]
        answer = actor(("return", {"all": arrays}))["all"]
        for sent, got in zip(arrays, answer, strict=True):
            assert slot_of(got) is slot_of(array)
            assert (got.shape, got.strides, got.dtype) == (sent.shape, sent.strides, sent.dtype)
            assert got.ctypes.data == sent.ctypes.data
        array.flags.writeable = False
        assert actor(("return", array)).flags.writeable is False
        del arrays, answer, sent, got
        assert pool.statistics().lent == 1


def test_the_process_writes_into_the_memory_of_the_parent() -> None:
    with SharedPool.of(1, (6,)) as pool, on_processes(work.double).worker() as double:
        array = pool.copy(np.arange(6, dtype=np.float32))
        double(array[2:4])
        assert array.tolist() == [0, 1, 4, 6, 4, 5]


def test_two_pools_and_slots_taken_by_the_process() -> None:
    with SharedPool.of(1, (6,), name="in") as pool, SharedPool.of(1, (8,), name="out") as padded:
        with on_processes(work.Pad(padded)).worker() as pad:
            for value in range(3):
                out = pad(pool.copy(np.full(6, value, np.float32)))
                assert out.tolist() == [0, *[value] * 6, 0]
                assert (pool.statistics().lent, padded.statistics().lent) == (0, 1)
                del out
            with pytest.raises(PipelineError, match=r"\(11,\) and type float32 needs 44 bytes.*'out' have 32"):
                pad(np.zeros(9, np.float32))
            assert pad(np.ones(1, np.float32)).tolist() == [0, 1, 0]
        assert padded.statistics().lent == 0


def test_slots_that_are_not_in_the_reply_are_returned() -> None:
    with SharedPool.of(2, (4,)) as pool, on_processes(work.TakeThen(pool, 2)).worker() as take:
        for _ in range(3):
            assert take(("return", 1)) == 1
            with pytest.raises(KeyError):
                take(("raise", "x"))
            assert pool.statistics().lent == 0


def test_a_function_that_keeps_a_shared_array_fails() -> None:
    with SharedPool.of(2, (4,)) as pool:
        with on_processes(work.Keeper(copying=True)).worker() as copies:
            assert [copies(pool.copy(np.full(4, value, np.float32))) for value in (1, 2, 3)] == [0.0, 1.0, 2.0]
        with on_processes(work.Keeper(copying=False)).worker() as keeps:
            with pytest.raises(
                PipelineError, match=r"Keeper kept 1 array\(s\) of the shared pool 'shared'.*array.copy"
            ):
                keeps(pool.copy(np.zeros(4, np.float32)))


def test_arrays_sent_with_the_function_remain_valid() -> None:
    with SharedPool.of(1, (4,)) as pool:
        table = pool.copy(np.arange(4, dtype=np.float32))
        read: Callable[[int], float] = lambda index: float(table[index])  # noqa: E731
        with on_processes(read).worker() as look_up:
            assert [look_up(index) for index in range(4)] == [0, 1, 2, 3]
            table[:] = 5
            assert look_up(0) == 5
        del look_up, read


def test_a_large_pickle_causes_one_warning(actor: Any) -> None:
    with pytest.warns(RuntimeWarning, match=r"pickles 2,0\d\d,\d\d\d bytes for one item; arrays of a SharedPool"):
        actor(("return", bytearray(2_000_000)))
    actor(("return", bytearray(2_000_000)))


def test_closures_and_set_up_in_the_process(tmp_path: Path) -> None:
    path = tmp_path / "log"
    base = 10

    @contextmanager
    def made() -> Iterator[Any]:
        path.write_text(f"enter {os.getpid()}")
        yield lambda item: item + base
        path.write_text(path.read_text() + f" exit {os.getpid()}")

    graph = Graph("set-up")
    graph.sink("out", after=graph.stage("add", on_processes(per_worker(made)), after=graph.source("draw", range(3))))
    with graph.start() as run:
        assert list(run) == [10, 11, 12]
    enter, pid, leave, again = path.read_text().split()
    assert (enter, leave, pid) == ("enter", "exit", again)
    assert int(pid) != os.getpid()


def test_the_process_is_quiet_and_named(actor: Any) -> None:
    facts = actor(("facts", None))
    assert facts["sigint"]
    assert not facts["blocked"]
    assert facts["parent"] == os.getpid()
    assert facts["name"] == "MainThread"
    assert facts["sockets"] == 1
    before = actor(("facts", None))["cpu"]
    threading.Event().wait(0.3)  # checks that nothing happens during this wait
    assert actor(("facts", None))["cpu"] - before <= 0.02


def test_a_function_that_cannot_be_sent_is_rejected_at_declaration() -> None:
    running = (number for number in range(3))
    with pytest.raises(PipelineError, match="cannot be sent to another process"):
        on_processes(lambda item: next(running))
    with pytest.raises(TypeError, match="needs a function"):
        on_processes(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time_limit > 0 seconds"):
        on_processes(act, time_limit=0)


def test_a_process_stage_can_be_called_like_a_function() -> None:
    stage: OnProcesses[object, int] = on_processes(work.pid_of)
    assert stage(None) != os.getpid()
    assert repr(stage) == "on_processes(pid_of)"
    with stage.worker() as worker:
        assert len(stage.workers) == 1
        assert worker(None) == worker(None)
    assert not stage.workers
