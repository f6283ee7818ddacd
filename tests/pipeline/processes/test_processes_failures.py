"""Process stages that raise, die, hang or are stopped, or whose parent dies: errors, and resources left behind."""

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from multiprocess import resource_tracker

from tests.conftest import children
from tests.pipeline.processes import process_work as work
from tests.pipeline.processes.process_work import act
from threadloom.pipeline import (
    Cancelled,
    Graph,
    ProcessError,
    ProcessTraceback,
    Run,
    SkipFailed,
    StageFailure,
    WorkerDied,
    WorkerTimeout,
    on_processes,
    per_worker,
)
from threadloom.pipeline.core.shared import SharedPool
from threadloom.pipeline.testing import ResourceSnapshot

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True, scope="module")
def _fast_collections() -> Iterator[None]:
    """Exclude existing objects from garbage collection: after tests of kernels it takes a second instead of 10 ms."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_of_the_system_left() -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child process or a name in /dev/shm, without a grace period."""
    resource_tracker.ensure_running()  # multiprocess starts it once and keeps it
    gc.collect()
    descriptors, before = len(os.listdir("/proc/self/fd")), (set(children()), ResourceSnapshot.now())
    yield
    gc.collect()  # exceptions refer to their items
    assert len(os.listdir("/proc/self/fd")) <= descriptors  # fewer if pytest drops the exception of an earlier test
    assert set(children()) == before[0]
    assert "shared-memory segment" not in ResourceSnapshot.now().since(before[1])


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def run_one(job: work.Job, **settings: Any) -> Any:
    """Run a graph with one item through a process stage."""
    graph = Graph("one")
    fn = on_processes(act, **settings)
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("draw", [job])))
    with graph.start() as run:
        return list(run)


def failure_of(job: work.Job, **settings: Any) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        run_one(job, **settings)
    return caught.value


def test_an_exception_has_the_traceback_of_the_process() -> None:
    failure = failure_of(("raise", "gone"))
    error = failure.__cause__
    assert isinstance(error, KeyError)
    assert error.args == ("gone",)
    assert isinstance(error.__cause__, ProcessTraceback)
    text = str(error.__cause__)
    assert "of 'one.work-0':\nTraceback" in text
    assert "in deeper\n    raise KeyError(value)" in text
    assert "child_main.py" not in text
    assert "stage 'work' (worker 0) failed on ('raise', 'gone'): KeyError: 'gone'" in str(failure)


def test_an_exception_that_cannot_be_pickled_is_replaced_by_its_text() -> None:
    error = failure_of(("raise_unpicklable", None)).__cause__
    assert isinstance(error, ProcessError)
    assert str(error) == "TwoArguments: 1 and 2"
    assert "raise TwoArguments(1, 2)" in str(error.__cause__)


def test_sys_exit_is_an_error_and_the_worker_continues_after_errors() -> None:
    with on_processes(act).worker() as worker:
        for _ in range(2):
            with pytest.raises(SystemExit):
                worker(("exit", 3))
            assert worker(("return", 1)) == 1


@pytest.mark.parametrize(
    ("job", "exitcode", "message"),
    [
        (("leave", 3), 3, r"exited with code 3 while processing item \('leave', 3\).*os\._exit"),
        (("kill", 9), -9, r"was killed by signal 9 \(SIGKILL\) while processing item \('kill', 9\).*outside.*memory"),
        (("kill", 15), -15, r"was killed by signal 15 \(SIGTERM\)"),
        (("segfault", None), -11, r"was killed by signal 11 \(SIGSEGV\).*own code crashed\n+Fatal[^$]*in do_segfault"),
        (("fork_and_die", None), -9, r"was killed by signal 9 \(SIGKILL\)"),
    ],
    ids=["os._exit", "kill -9", "kill", "segfault", "fork"],
)
def test_the_error_of_a_death_names_process_signal_and_item(job: work.Job, exitcode: int, message: str) -> None:
    failure = failure_of(job)
    error = failure.__cause__
    assert isinstance(error, WorkerDied)
    assert error.exitcode == exitcode
    assert not Path(f"/proc/{error.pid}").exists()
    with pytest.raises(WorkerDied, match=rf"process {error.pid} of 'one\.work-0' {message}"):
        raise error
    assert failure.stage == "work"


def test_after_a_death_the_next_item_gets_a_new_process() -> None:
    with on_processes(act).worker() as worker:
        first = worker(("facts", None))["pid"]
        with pytest.raises(WorkerDied):
            worker(("kill", 9))
        second = worker(("facts", None))["pid"]
        assert second != first


def test_a_kill_from_outside_ends_the_run_and_frees_the_slots(fifo: Path) -> None:
    with SharedPool.of(4, (4,)) as pool:
        take = on_processes(work.TakeThen(pool, 2))
        graph = Graph("killed")
        graph.sink("out", after=graph.stage("work", take, after=graph.source("draw", [("hang", str(fifo))])))
        with pytest.raises(StageFailure, match="SIGKILL"):
            with graph.start(resources=[take, pool]) as run:
                pid = int(fifo.read_text())
                assert pool.statistics().lent == 2
                os.kill(pid, signal.SIGKILL)
                list(run)
        assert pool.statistics().lent == 0


def test_the_slots_of_a_dead_process_are_returned_once_the_error_is_dropped() -> None:
    with SharedPool.of(2, (4,)) as pool:
        with on_processes(act).worker() as worker:
            with pytest.raises(WorkerDied):
                worker(("kill", 9 if pool.copy(np.zeros(4, np.float32)) is not None else 0))
        array = pool.copy(np.zeros(4, np.float32))
        with on_processes(work.Keeper(copying=True)).worker() as keeper:
            assert keeper.pid is not None
            keeper.kill_process(keeper.pid)
            with pytest.raises(WorkerDied):
                keeper(array)
        del array
        gc.collect()
        assert pool.statistics().lent == 0


@pytest.mark.parametrize(
    ("how", "verb"), [("cancel", "hang"), ("cancel", "hold_gil"), ("leave", "hang"), ("fail elsewhere", "hang")]
)
def test_a_stopped_run_does_not_wait_for_the_item(fifo: Path, verb: str, how: str) -> None:
    hang = on_processes(act)
    graph = Graph("stopped")
    ready = threading.Event()

    def fail(item: object) -> None:
        assert ready.wait(30)
        raise ZeroDivisionError

    jobs = graph.source("draw", [(verb, str(fifo))])
    graph.sink("out", after=graph.stage("work", hang, after=jobs))
    if how == "fail elsewhere":
        graph.stage("bad", fail, after=jobs)
    begin = 0.0

    def stop(run: Run) -> None:
        nonlocal begin
        fifo.read_text()
        begin = time.monotonic()
        if how == "cancel":
            run.cancel()
            list(run)
        elif how == "fail elsewhere":
            ready.set()
            list(run)

    expected: dict[str, Any] = {"cancel": Cancelled, "fail elsewhere": StageFailure}
    if how in expected:
        with pytest.raises(expected[how]), graph.start() as run:
            stop(run)
    else:
        with graph.start() as run:
            stop(run)
    assert time.monotonic() - begin < 5  # ABORT_GRACE is 0.5 s; the rest is for a loaded machine
    assert not hang.workers


def test_abort_before_and_while_the_process_starts(tmp_path: Path, fifo: Path) -> None:
    early = on_processes(act).worker()
    early.abort()
    with pytest.raises(Cancelled), early:
        pass

    entered = on_processes(per_worker(lambda: work.act(("hang", str(fifo)))))
    worker = entered.worker()

    def stop() -> None:
        fifo.read_text()
        entered.abort()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Cancelled), worker:
        pass
    stopper.join(30)


def test_a_pool_that_is_aborted_ends_a_process_that_waits_for_a_slot() -> None:
    with SharedPool.of(1, (4,)) as pool:
        held = [pool.empty(4)]
        take = on_processes(work.TakeThen(pool))
        with pytest.raises(Cancelled), take.worker() as worker:
            asked = threading.Thread(target=pool.abort)
            asked.start()
            worker(("return", 1))
        asked.join(30)
        held.clear()


def test_a_time_limit_kills_the_process() -> None:
    error = failure_of(("hang", os.devnull), time_limit=0.05).__cause__
    assert isinstance(error, WorkerTimeout)
    assert "was killed: item ('hang', '/dev/null') exceeded the time limit of 0.05 s" in str(error)


@pytest.mark.parametrize("word", ["enter", "exit"])
def test_an_error_of_set_up_or_tear_down_fails_the_run(tmp_path: Path, word: str) -> None:
    path = tmp_path / "log"
    graph = Graph("failing")
    make: Callable[[], work.Logged] = lambda: work.Logged(str(path), word)  # noqa: E731
    node = graph.stage("work", on_processes(per_worker(make)), after=graph.source("draw", [("return", 1)]))
    graph.sink("out", after=node)
    with pytest.raises(StageFailure, match=f"ValueError: no {word}") as caught, graph.start() as run:
        assert list(run) == [1]
    assert "in log" in str(caught.value.__cause__ and caught.value.__cause__.__cause__)


def test_the_process_tears_down_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log"
    stage = on_processes(per_worker(lambda: work.Logged(str(path))))
    with pytest.raises(KeyError), stage.worker() as worker:
        worker(("raise", "x"))
    words = path.read_text().split()
    assert words[0::2] == ["enter", "exit"]
    assert words[1] == words[3]


PARENT = """
import sys
from threadloom.pipeline import Graph
from threadloom.pipeline import on_processes
from threadloom.pipeline.core.shared import SharedPool
from tests.pipeline.processes import process_work as work

def start(verb, fifo):
    with SharedPool.of(2, (1024,)) as pool:
        take = on_processes(work.TakeThen(pool))
        graph = Graph("parent")
        graph.sink("out", after=graph.stage("work", take, after=graph.source("draw", [(verb, fifo)])))
        with graph.start(resources=[take, pool]) as run:
            for item in run:
                print(item)
"""
GUARDED = "\nif __name__ == '__main__':\n    start(*sys.argv[1:])\n"


def script(tmp_path: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("verb", ["hang", "hold_gil"])
def test_no_process_outlives_a_killed_parent(tmp_path: Path, fifo: Path, verb: str) -> None:
    with script(tmp_path, PARENT + GUARDED, verb, str(fifo)) as parent:
        pid = int(fifo.read_text())
        ended = os.pidfd_open(pid)
        try:
            parent.kill()
            parent.communicate(timeout=30)
            assert select.select([ended], [], [], 30)[0]
        finally:
            os.close(ended)


def test_ctrl_c_interrupts_the_parent_only(tmp_path: Path, fifo: Path) -> None:
    with script(tmp_path, PARENT + GUARDED, "hang", str(fifo)) as parent:
        fifo.read_text()
        os.killpg(parent.pid, signal.SIGINT)
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == -signal.SIGINT
    assert stderr.count("Traceback") == 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_script_without_the_main_guard_gets_a_hint(tmp_path: Path) -> None:
    with script(tmp_path, PARENT + "\nstart('return', None)\n") as parent:
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 1
    assert "a run was started during the set-up of its own worker process" in stderr
    assert "exited with code 1 during its start and set-up" in stderr
    assert stderr.count("put the start under `if __name__ == '__main__':`") >= 2


def test_functions_of_a_script_and_of_python_c(tmp_path: Path) -> None:
    body = """
from threadloom.pipeline import on_processes
OFFSET = 4
def add(item):
    return item + OFFSET
def start():
    for fn in (add, lambda item: item + OFFSET):
        with on_processes(fn).worker() as worker:
            print(worker(3))
"""
    with script(tmp_path, body + "if __name__ == '__main__':\n    start()\n") as parent:
        assert parent.communicate(timeout=30) == ("7\n7\n", "")
    answer = subprocess.run(
        [sys.executable, "-c", body + "start()\n"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (answer.stdout, answer.stderr) == ("7\n7\n", "")


def test_a_late_item_is_skipped_and_its_process_ended() -> None:
    """`limit` of the stage, not `time_limit`: the worker that replaces the late one starts a process too."""
    graph = Graph("late")
    jobs: list[work.Job] = [("return", 1), ("hang", "/dev/null"), ("return", 2)]
    node = graph.stage("work", on_processes(act), after=graph.source("jobs", jobs), limit=0.5, on_error=SkipFailed())
    graph.sink("out", after=node)
    with graph.start() as run:
        assert list(run) == [1, 2]
    assert (run.statistics()["work"].skipped, run.statistics()["work"].replaced) == (1, 1)
