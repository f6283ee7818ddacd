"""Calls that are sent to a process ahead of their turn, by workers that are driven directly."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline.processes import process_work as work
from tests.pipeline.processes.process_work import act
from threadloom.pipeline import (
    Cancelled,
    Graph,
    GraphError,
    InOrder,
    PipelineError,
    Retry,
    SharedPool,
    SkipFailed,
    WorkerDied,
    WorkerTimeout,
    on_processes,
)
from threadloom.pipeline.policy import Fifo, NumberedAdmission
from threadloom.pipeline.processes.connection import MOST_AHEAD
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.chunks import ChunkedGet

pytestmark = pytest.mark.timeout(60)

Job = tuple[str, Any]


class Unsendable:
    def __reduce__(self) -> str:
        raise TypeError("not to be sent")


def outcomes(worker: Any, items: Sequence[Any]) -> list[Any]:
    """Return the result of each call, or the type of its error."""
    found: list[Any] = []
    for item in items:
        try:
            found.append(worker(item))
        except Exception as error:
            found.append(type(error))
    return found


def test_each_item_of_a_chunk_has_its_own_result_or_error() -> None:
    large = ("return", bytes(3 * MOST_AHEAD))
    items: list[Any] = [("return", 1), ("raise", "x"), Unsendable(), ("return", 2), large, ("exit", 3), ("return", 4)]
    expected = [1, KeyError, PipelineError, 2, large[1], SystemExit, 4]
    with on_processes(act, chunk=9).worker() as worker:
        for _ in range(2):
            worker.send_ahead(items)
            found: list[Any] = []
            for item in items:
                try:
                    found.append(worker(item))
                except (Exception, SystemExit) as error:
                    found.append(type(error))
            assert found == expected


def test_large_items_and_large_results_do_not_block_each_other() -> None:
    """The results exceed the buffer of the socket: a parent that sent ahead without bound would wait for its reader."""
    items = [("return", bytes(MOST_AHEAD // 2)) for _ in range(20)]
    with on_processes(act, chunk=20).worker() as worker:
        worker.send_ahead(items)
        assert outcomes(worker, items) == [value for _, value in items]


def test_a_repeated_call_is_made_after_the_rest_of_the_chunk(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    items = [("append", (path, number)) for number in range(4)]
    with on_processes(act, chunk=4).worker() as worker:
        worker.send_ahead(items)
        assert worker(items[0]) == 0
        assert worker(items[1]) == 1
        assert worker(items[1]) == 1  # a retry
        assert outcomes(worker, items[2:]) == [2, 3]
    assert Path(path).read_text().split() == ["0", "1", "2", "3", "1"]


def test_if_the_process_dies_its_item_fails_and_the_rest_is_done_once(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    items: list[Job] = [("append", (path, 0)), ("leave", 3), ("append", (path, 1)), ("append", (path, 2))]
    with on_processes(act, chunk=4).worker() as worker:
        first = worker.pid
        worker.send_ahead(items)
        assert outcomes(worker, items) == [0, WorkerDied, 1, 2]
        assert worker.pid != first
    assert Path(path).read_text().split() == ["0", "1", "2"]


def test_the_time_limit_is_that_of_an_item() -> None:
    items: list[Job] = [("return", 1), ("hang", os.devnull), ("return", 2)]
    with on_processes(act, chunk=4, time_limit=0.5).worker() as worker:
        worker.send_ahead(items)
        assert outcomes(worker, items) == [1, WorkerTimeout, 2]


def test_an_abort_ends_the_wait_for_a_chunk(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    items: list[Job] = [("hang", str(fifo)), ("return", 1)]

    def stop() -> None:
        fifo.read_text()  # the process is inside its first call
        worker.abort()

    stopper = threading.Thread(target=stop)
    with pytest.raises(Cancelled), on_processes(act, chunk=2).worker() as worker:
        worker.send_ahead(items)
        stopper.start()
        worker(items[0])
    stopper.join(30)


def test_a_process_gets_slots_while_calls_wait_for_it() -> None:
    with SharedPool.of(4, (8,)) as pool:
        arrays = [np.full(3, number, np.float32) for number in range(3)]
        with on_processes(work.Pad(pool), chunk=3).worker() as worker:
            for _ in range(3):  # the slots are free again after each round
                worker.send_ahead(arrays)
                sums = [float(worker(array).sum()) for array in arrays]
                assert sums == [0, 3, 6]


def test_a_graph_with_chunks_has_the_order_the_policies_and_the_counts_of_single_items() -> None:
    jobs: list[Job] = [("raise", "x") if number % 7 == 3 else ("return", number) for number in range(100)]
    graph = Graph("g")
    policy = Retry(times=1, first=0, then=SkipFailed())
    node = graph.stage(
        "work", on_processes(act, chunk=8), after=graph.source("jobs", jobs), ordered=True, workers=2, on_error=policy
    )
    graph.sink("out", after=node)
    with graph.start() as run:
        assert list(run) == [number for number in range(100) if number % 7 != 3]
    counted = run.statistics()["work"]
    assert (counted.items_in, counted.items_out, counted.skipped, counted.retried) == (100, 86, 14, 14)
    assert counted.channel is not None
    assert counted.channel.capacity == 16


def test_settings_that_are_at_odds_with_chunks() -> None:
    graph = Graph("g")
    jobs = graph.source("jobs", [("return", 1)])
    fn = on_processes(act, chunk=2)
    for options, name in (
        ({"admission": InOrder[Job](order=lambda job: (0, job[1]))}, "exclusive admission"),
        ({"acquire": lambda job: None}, "acquire"),
        ({"limit": 1.0}, "limit .time_limit"),
    ):
        with pytest.raises(GraphError, match=f"'work' has chunk=2, .* and .*{name}"):
            graph.stage("work", fn, after=jobs, **options)
    for chunk in (0, True, 2.0):
        with pytest.raises(ValueError, match="chunk to be a whole number"):
            on_processes(act, chunk=chunk)  # type: ignore[arg-type]
    assert graph.stages == (graph.stages[0],)


# Taking items in chunks, without processes.


class Recorder:
    chunk = 3

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []

    def send_ahead(self, items: Sequence[Any]) -> None:
        self.sent.append(list(items))


def test_a_chunk_is_what_is_ready() -> None:
    channel: Channel[int, int] = Channel(Fifo().begin(10), 10, 1)
    recorder = Recorder()
    get = ChunkedGet(channel, recorder, numbered=False)
    for number in range(5):
        channel.put(number)
    found = [get(0) for _ in range(5)]
    channel.put(5)
    found.append(get(0))  # a single item is not sent ahead
    assert found == [0, 1, 2, 3, 4, 5]
    assert recorder.sent == [[0, 1, 2], [3, 4]]
    channel.put(6)
    channel.abort()
    with pytest.raises(Cancelled):
        get(0)


def test_an_ordered_stage_takes_no_more_than_its_window() -> None:
    channel: Channel[int, tuple[int, int]] = Channel(NumberedAdmission(Fifo().begin(9), 1, 1), 9, 1)
    recorder = Recorder()
    get = ChunkedGet(channel, recorder, numbered=True)
    for number in range(5):
        channel.put(10 * number)
    assert [get(0), get(0)] == [(0, 0), (1, 10)]
    assert recorder.sent == [[0, 10]]  # two are taken and not sent: the window
    channel.sent()
    assert get(0) == (2, 20)
    assert channel.take_ready(9) == []
