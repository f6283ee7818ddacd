"""Tests of draw_timeline and of the selection of its content."""

import sys
from pathlib import Path

import pytest

from threadloom.pipeline import TraceEvent, draw_timeline
from threadloom.pipeline.observe.timeline import Timeline, batch_colours, last_batches, most_concurrent, timeline_rows

pytestmark = pytest.mark.timeout(60)

MS = 1_000_000


def event(stage: str, start: int, end: int, worker: int = 0, **label: int | str) -> TraceEvent:
    return TraceEvent(stage, worker, start * MS, end * MS, label, 0)


def timeline(events: list[TraceEvent], end: int) -> Timeline:
    return Timeline(events, timeline_rows(events, None), 0, end * MS, "batch", batch_colours(events, "batch"))


# Forward on batch N, backward on N - 1, optimizer on N - 2, ten milliseconds each.
OVERLAP = [
    event(stage, 10 * (batch + lag), 10 * (batch + lag + 1), batch=batch)
    for batch in range(6)
    for lag, stage in enumerate(("forward", "backward", "optimizer"))
]


@pytest.mark.parametrize("settings", [{}, {"last": 100}, {"window": (15 * MS, 25 * MS)}, {"stages": ["forward"]}])
def test_a_png_is_drawn(tmp_path: Path, settings: dict[str, object]) -> None:
    path = tmp_path / "timeline.png"
    draw_timeline(OVERLAP, path, title="Overlap", **settings)  # type: ignore[arg-type]
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1800
    assert "matplotlib.pyplot" not in sys.modules


def test_events_without_a_batch_are_drawn_too(tmp_path: Path) -> None:
    draw_timeline([event("work", 0, 0), event("work", 1, 5, name="x")], tmp_path / "timeline.png")


def test_no_events_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass a trace to the run"):
        draw_timeline(OVERLAP, tmp_path / "timeline.png", stages=["unknown"])


def test_the_window_begins_with_thelast_batches() -> None:
    assert last_batches(OVERLAP, "batch", 2) == (40 * MS, 80 * MS)
    assert last_batches(OVERLAP, "batch", 99) == (0, 80 * MS)


def test_rows_are_in_the_order_of_first_events_or_of_stages() -> None:
    events = [event("b", 0, 1, worker=1), event("a", 1, 2), event("b", 2, 3)]
    assert list(timeline_rows(events, None)) == [("b", 0), ("b", 1), ("a", 0)]
    assert list(timeline_rows(events, ["a", "b"])) == [("a", 0), ("b", 0), ("b", 1)]


def test_neighbouring_batches_differ_in_colour() -> None:
    colours = batch_colours(OVERLAP, "batch")
    assert len(set(colours.values())) == 6
    assert batch_colours([event("a", 0, 1, batch="x"), event("a", 0, 1, batch=2)], "batch").keys() == {"x", 2}


def test_the_time_with_the_most_concurrent_batches() -> None:
    found = most_concurrent(timeline(OVERLAP, 80))
    assert found is not None
    time, running = found
    assert time == 25 * MS
    assert {each.stage: each.label["batch"] for each in running} == {"forward": 2, "backward": 1, "optimizer": 0}
    assert most_concurrent(timeline(OVERLAP[:1], 10)) is None
