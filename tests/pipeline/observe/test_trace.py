"""Tests of traces: the events kept, the cost of recording, and the Chrome trace files."""

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from timeit import repeat
from typing import Any

import pytest

from threadloom.pipeline import SKIP, Gather, Graph, Trace, TraceEvent
from threadloom.pipeline.observe.trace_event import RawEvent

pytestmark = pytest.mark.timeout(60)


def event(number: int, stage: str = "work", worker: int = 0) -> RawEvent:
    return (stage, worker, number * 1000, number * 1000 + 500, {"batch": number}, 1, number, number + 1)


def numbers(trace: Trace) -> list[int | str]:
    return [each.label["batch"] for each in trace.events()]


def test_the_most_recent_events_are_kept() -> None:
    trace = Trace(capacity=3)
    for number in range(10):
        trace.record(event(number))
    assert numbers(trace) == [7, 8, 9]
    assert len(trace) == 3


def test_the_first_events_can_be_kept_in_addition() -> None:
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


def test_threads_record_concurrently_without_losing_events() -> None:
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
    assert len(events["spread"]) == 8  # one per element of the generator
    assert {tuple(each.label) for each in events["spread"]} == {
        ("batch",)
    }  # the entries equal in both items of a group
    for each in chain(*events.values()):
        assert each.start_ns <= each.end_ns


def test_a_materialised_expansion_is_one_event() -> None:
    graph = Graph("list")
    graph.stage("spread", lambda item: [item] * 3, after=graph.source("draw", [1]), expand=True)
    trace = Trace()
    graph.run(trace=trace)
    assert [each.stage for each in trace.events()].count("spread") == 1


def test_the_label_is_taken_before_the_call() -> None:
    """After the call, a slot may have been released and belong to the next item."""

    class Slot:
        batch = 1

    def work(slot: Slot) -> None:
        slot.batch = 2

    graph = Graph("slots")
    graph.stage("work", work, after=graph.source("draw", [Slot()]))
    trace = Trace()
    graph.run(trace=trace, label=lambda slot: {"batch": slot.batch})
    assert [each.label["batch"] for each in trace.events() if each.stage == "work"] == [1]


def written(trace: Trace, folder: Path) -> list[dict[str, Any]]:
    trace.write_chrome(folder / "trace.json", process="training")
    entries: list[dict[str, Any]] = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return entries


def check_chrome(entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Read the entries in the order of the file, as Perfetto does, and return the arrows as pairs of bars.

    A flow is bound to the last bar started on its row, so this fails if Perfetto would bind it elsewhere.
    """
    timed = [entry for entry in entries if entry["ph"] != "M"]
    assert entries[: len(entries) - len(timed)] == [entry for entry in entries if entry["ph"] == "M"]
    assert [entry["ts"] for entry in timed] == sorted(entry["ts"] for entry in timed)
    assert all(entry["ts"] >= 0 and entry["pid"] == 1 for entry in timed)
    rows = {entry["tid"] for entry in entries if entry["name"] == "thread_name"}
    bars: dict[int, dict[str, Any]] = {}  # row → the last bar started
    flows: dict[int, dict[str, Any]] = {}  # id → its last bar
    finished: set[int] = set()
    arrows = []
    for entry in timed:
        assert entry["tid"] in rows
        bar = bars.get(entry["tid"])
        if entry["ph"] == "X":
            assert entry["dur"] >= 0
            assert bar is None or bar["ts"] + bar["dur"] <= entry["ts"] + 1e-6
            bars[entry["tid"]] = entry
        elif entry["ph"] == "C":
            assert set(entry["args"]) == {"depth"}
        else:
            assert bar is not None
            assert bar["ts"] <= entry["ts"] <= bar["ts"] + bar["dur"]
            assert (entry["name"], entry["cat"]) == ("item", "item")
            assert ("bp" in entry) == (entry["ph"] == "f")
            assert entry["id"] not in finished
            assert (entry["ph"] == "s") == (entry["id"] not in flows)
            if entry["ph"] != "s":
                arrows.append((flows[entry["id"]], bar))
            flows[entry["id"]] = bar
            if entry["ph"] == "f":
                finished.add(entry["id"])
    assert finished == set(flows)  # each flow that starts finishes
    return arrows


def test_chrome_json_is_valid_for_perfetto(tmp_path: Path) -> None:
    entries = written(traced(), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]
    assert {entry["ph"] for entry in entries} == {"M", "X", "C", "s", "t", "f"}
    assert entries[0] == {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "training"}}
    names = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    assert {"draw-0", "spread-0"} <= set(names.values())
    assert len(set(names.values())) == len(names)
    check_chrome(entries)
    assert {entry["name"] for entry in entries if entry["ph"] == "C"} == {
        "channel before work",
        "channel before spread",
    }
    assert next(iter(names.values())) == "draw-0"
    assert min(entry["ts"] for entry in entries if entry["ph"] != "M") == 0
    for entry in entries:
        if entry["ph"] == "X":
            assert names[entry["tid"]].rpartition("-")[0] == entry["args"]["stage"] == entry["cat"]
            if "batch" in entry["args"]:
                assert entry["name"] == f"{entry['cat']} {entry['args']['batch']}"


def test_arrows_lead_along_the_items(tmp_path: Path) -> None:
    arrows = check_chrome(written(traced(), tmp_path))
    steps = {(sender["cat"], taker["cat"]) for sender, taker in arrows}
    assert steps == {("draw", "work"), ("work", "spread")}
    for sender, taker in arrows:
        assert sender["args"]["batch"] == taker["args"]["batch"]
        if taker["cat"] == "work":
            assert sender["args"]["item"] == taker["args"]["item"]
    # One arrow per item into work; both elements of a group have arrows from both of its items.
    assert [taker["cat"] for _, taker in arrows].count("work") == 8
    assert [taker["cat"] for _, taker in arrows].count("spread") == 16


def test_an_item_keeps_its_number_without_a_label(tmp_path: Path) -> None:
    graph = Graph("numbers")
    work = graph.stage("work", str, after=graph.source("draw", range(5)), workers=2)
    graph.stage("pair", len, after=work, gather=Gather(count=2, partial=True))
    trace = Trace()
    graph.run(trace=trace)
    bars = [entry for entry in written(trace, tmp_path) if entry["ph"] == "X"]
    assert sorted(bar["name"] for bar in bars if bar["cat"] == "draw" and "item" in bar["args"]) == [
        f"draw {number}" for number in range(5)
    ]
    assert sorted(bar["name"] for bar in bars if bar["cat"] == "work") == [f"work {number}" for number in range(5)]
    paired = [bar["args"].get("items", str(bar["args"].get("item"))) for bar in bars if bar["cat"] == "pair"]
    assert sorted(int(number) for each in paired for number in each.split(", ")) == list(range(5))


def test_forks_and_joins_have_an_arrow_per_path(tmp_path: Path) -> None:
    graph = Graph("diamond")
    source = graph.source("draw", [object() for _ in range(6)])
    left = graph.stage("left", lambda item: item, after=source)  # sends the same object
    right = graph.stage("right", lambda item: [item], after=source, workers=2)
    graph.stage("both", lambda item: SKIP, after=[left, right])
    trace = Trace()
    graph.run(trace=trace)
    arrows = check_chrome(written(trace, tmp_path))
    assert Counter((sender["cat"], taker["cat"]) for sender, taker in arrows) == {
        ("draw", "left"): 6,
        ("draw", "right"): 6,
        ("left", "both"): 6,
        ("right", "both"): 6,
    }
    assert all(sender["args"]["item"] == taker["args"]["item"] for sender, taker in arrows)


def test_a_materialised_expansion_sends_its_elements_from_one_bar(tmp_path: Path) -> None:
    graph = Graph("list")
    spread = graph.stage(
        "spread", lambda item: [object(), SKIP, object()], after=graph.source("draw", [1]), expand=True
    )
    graph.stage("end", lambda item: None, after=spread)
    trace = Trace()
    graph.run(trace=trace)
    arrows = check_chrome(written(trace, tmp_path))
    assert sorted((sender["cat"], taker["cat"]) for sender, taker in arrows) == [
        ("draw", "spread"),
        ("spread", "end"),
        ("spread", "end"),
    ]


def test_a_trace_with_dropped_events_is_valid(tmp_path: Path) -> None:
    graph = Graph("long")
    work = graph.stage(
        "work", lambda item: item % 3, after=graph.source("draw", range(300))
    )  # few objects, sent repeatedly
    graph.stage("end", lambda item: SKIP, after=work)
    trace = Trace(capacity=50, first=20)
    graph.run(trace=trace)
    arrows = check_chrome(written(trace, tmp_path))
    assert len(arrows) > 20


def test_tracing_costs_less_than_a_microsecond_per_item(tmp_path: Path) -> None:
    """The work per event: two ids, a tuple, and an append."""
    trace, label, item = Trace(), {"batch": 1}, object()
    record = trace.record
    best = min(repeat(lambda: record(("work", 0, 1, 2, label, 1, id(item), id(label))), number=10_000, repeat=5))
    assert best / 10_000 < 1e-6


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
