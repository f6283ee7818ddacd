"""Traces: what is kept, what it costs, and whether Perfetto can open it."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from timeit import repeat
from typing import Any

import pytest

from pipeline import Gather, Graph, Trace, TraceEvent
from pipeline.trace import RawEvent

pytestmark = pytest.mark.timeout(60)


def event(number: int, stage: str = "work", worker: int = 0) -> RawEvent:
    return (stage, worker, number * 1000, number * 1000 + 500, {"batch": number}, 1, (number,), (number + 1,))


def numbers(trace: Trace) -> list[int | str]:
    return [each.label["batch"] for each in trace.events()]


def test_the_most_recent_events_are_kept() -> None:
    trace = Trace(capacity=3)
    for number in range(10):
        trace.record(event(number))
    assert numbers(trace) == [7, 8, 9]
    assert len(trace) == 3


def test_the_first_events_can_be_kept_besides() -> None:
    trace = Trace(capacity=2, first=2)
    for number in range(10):
        trace.record(event(number))
    assert numbers(trace) == [0, 1, 8, 9]
    trace.clear()
    assert numbers(trace) == []


@pytest.mark.parametrize("settings", [{"capacity": 0}, {"first": -1}])
def test_sizes_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="capacity >= 1 and first >= 0"):
        Trace(**settings)


def test_threads_record_at_once_without_losing_events() -> None:
    trace = Trace()
    together = threading.Barrier(4, timeout=30)

    def record(worker: int) -> None:
        together.wait()
        for number in range(1000):
            trace.record(event(number, worker=worker))

    threads = [threading.Thread(target=record, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trace) == 4000


def test_an_event_costs_less_than_a_microsecond() -> None:
    trace, label = Trace(), {"batch": 1}
    record = trace.record
    best = (
        min(repeat(lambda: record(("work", 0, 1, 2, label, 1, (id(label),), (id(trace),))), number=10_000, repeat=5))
        / 10_000
    )
    assert best < 1e-6


def traced(count: int = 8) -> Trace:
    def spread(items: list[int]) -> Iterator[int]:
        yield from items

    graph = Graph("traced")
    source = graph.source("draw", range(count))
    work = graph.stage("work", int, after=source, workers=2)
    groups = graph.stage("spread", spread, after=work, gather=Gather(lambda item: item // 2, 2), expand=True)
    graph.sink("out", after=groups)
    trace = Trace()
    with graph.start(trace=trace, label=lambda item: {"batch": item // 2, "item": item}) as run:
        assert sorted(run) == list(range(count))
    return trace


def test_every_call_is_an_event_of_its_worker_with_the_label_of_its_item() -> None:
    events = defaultdict(list)
    for each in traced().events():
        events[each.stage].append(each)
    assert [each.label for each in events["draw"]][:8] == [{"batch": item // 2, "item": item} for item in range(8)]
    assert sorted(each.label["item"] for each in events["work"]) == list(range(8))
    assert {each.worker for each in events["work"]} <= {0, 1}
    assert len(events["spread"]) == 8  # one for each element that the generator made
    assert {tuple(each.label) for each in events["spread"]} == {("batch",)}  # on which both items of a group agree
    for each in chain(*events.values()):
        assert each.start_ns <= each.end_ns


def test_a_materialised_expansion_is_one_event() -> None:
    graph = Graph("list")
    graph.stage("spread", lambda item: [item] * 3, after=graph.source("draw", [1]), expand=True)
    trace = Trace()
    graph.run(trace=trace)
    assert [each.stage for each in trace.events()].count("spread") == 1


def test_the_label_is_taken_before_the_call() -> None:
    """Afterwards a slot may have been given back, and belong to the next item."""

    class Slot:
        batch = 1

    def work(slot: Slot) -> None:
        slot.batch = 2

    graph = Graph("slots")
    graph.stage("work", work, after=graph.source("draw", [Slot()]))
    trace = Trace()
    graph.run(trace=trace, label=lambda slot: {"batch": slot.batch})
    assert [each.label["batch"] for each in trace.events() if each.stage == "work"] == [1]


def test_chrome_json_is_what_perfetto_reads(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    traced().write_chrome(path, process="training")
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]
    entries: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    assert {entry["ph"] for entry in entries} == {"M", "X", "C"}
    assert entries[0] == {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "training"}}
    names = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    assert {"draw-0", "spread-0"} <= set(names.values())
    assert len(set(names.values())) == len(names)
    timed = [entry for entry in entries if entry["ph"] != "M"]
    assert [entry["ts"] for entry in timed] == sorted(entry["ts"] for entry in timed)
    assert timed[0]["ts"] == 0
    for entry in timed:
        if entry["ph"] == "X":
            assert entry["dur"] >= 0
            assert names[entry["tid"]].rpartition("-")[0] == entry["args"]["stage"] == entry["cat"]
            assert entry["name"] == f"{entry['cat']} {entry['args']['batch']}" or entry["name"] == entry["cat"]


def test_events_of_one_row_do_not_overlap() -> None:
    ends: dict[tuple[str, int], int] = {}
    for each in traced(40).events():
        assert each.start_ns >= ends.get((each.stage, each.worker), 0)
        ends[each.stage, each.worker] = each.end_ns


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    trace = Trace()
    trace.record(event(1))
    trace.write_chrome(path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        trace.write_chrome(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]


def test_an_empty_trace_is_a_valid_file(tmp_path: Path) -> None:
    Trace().write_chrome(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"][0]["ph"] == "M"


def test_events_are_named_tuples() -> None:
    trace = Trace()
    trace.record(event(3))
    assert trace.events() == [TraceEvent("work", 0, 3000, 3500, {"batch": 3}, 1, (3,), (4,))]
