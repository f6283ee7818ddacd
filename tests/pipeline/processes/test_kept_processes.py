"""Processes that are kept between runs. conftest checks after every test that no process and no thread is left."""

import gc
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.processes import process_work as work
from tests.pipeline.processes.process_work import act, pid_of
from threadloom.pipeline import Graph, OnProcesses, SharedPool, StageFailure, on_processes, per_worker

pytestmark = pytest.mark.timeout(60)


def results(fn: OnProcesses[Any, Any], items: list[Any], workers: int = 1) -> list[Any]:
    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("items", items), workers=workers, ordered=True))
    return list(graph)


def test_the_next_run_has_the_same_process_set_up_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with on_processes(per_worker(lambda: work.Logged(str(path))), keep=True) as fn:
        pids = [results(fn, [("facts", None)])[0]["pid"] for _ in range(3)]
        assert len(set(pids)) == 1
        assert path.read_text().split() == ["enter", str(pids[0])]
    assert path.read_text().split() == ["enter", str(pids[0]), "exit", str(pids[0])]
    assert results(fn, [("return", 1)]) == [1]  # after close: a process that ends with its run
    assert len(path.read_text().split()) == 8


def test_an_error_of_a_tear_down_is_raised_by_close(tmp_path: Path) -> None:
    fn = on_processes(per_worker(lambda: work.Logged(str(tmp_path / "log"), "exit")), keep=True)
    assert results(fn, [("return", 1)]) == [1]
    with pytest.raises(ValueError, match="no exit"):
        fn.close()
    fn.close()


def test_a_process_that_has_died_is_replaced() -> None:
    with on_processes(pid_of, keep=True) as fn:
        (pid,) = results(fn, [0])
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], 30)[0]
        os.close(ended)
        (other,) = results(fn, [0])
        assert other != pid


def test_a_process_of_a_failed_run_is_not_kept() -> None:
    with on_processes(act, keep=True) as fn:
        pid = results(fn, [("facts", None)])[0]["pid"]
        with pytest.raises(StageFailure, match="KeyError"):
            results(fn, [("raise", "x")])
        assert results(fn, [("facts", None)])[0]["pid"] != pid


def test_a_process_that_maps_the_memory_of_a_closed_pool_is_replaced() -> None:
    with on_processes(act, keep=True) as fn:
        pids = []
        for _ in range(2):
            with SharedPool.of(2, (4,)) as pool:
                array = pool.copy(np.arange(4, dtype=np.float32))
                assert float(results(fn, [("return", array)])[0].sum()) == 6
                pids += [results(fn, [("facts", None)])[0]["pid"]]
                del array
        assert pids[0] != pids[1]


def test_runs_at_the_same_time_share_no_process() -> None:
    with on_processes(pid_of, keep=True) as fn, fn.worker() as one, fn.worker() as other:
        assert one(0) != other(0)
        assert sorted([one(0), other(0)]) == sorted([one(1), other(1)])


def test_a_function_that_is_dropped_ends_its_processes() -> None:
    fn = on_processes(pid_of, keep=True)
    (pid,) = results(fn, [0])
    ended = os.pidfd_open(pid)
    del fn
    gc.collect()
    assert select.select([ended], [], [], 30)[0]
    os.close(ended)


def test_a_program_that_does_not_close_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.pipeline.processes.process_work import pid_of\n"
        "from threadloom.pipeline import on_processes\n"
        "if __name__ == '__main__':\n"
        "    fn = on_processes(pid_of, keep=True)\n"
        "    with fn.worker() as worker:\n"
        "        print(worker(0))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=50, check=True, env=environment
    )
    assert not done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
