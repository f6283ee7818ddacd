"""What every worker did and when, in bounded memory, for Perfetto (`write_chrome`) or a picture (`timeline`).

Guarantees: `record` is one append to a deque, which CPython makes atomic, so workers share a trace without a lock; at
most `capacity` events are kept, the most recent, and besides them the first `first` of the run. A run without a trace
does not come here at all.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import Label


class TraceEvent(NamedTuple):
    """One call of a stage function. Waiting, `acquire` and sending are not in it: they are the gaps between events."""

    stage: str
    """The stage's name."""
    worker: int
    """Which of its workers, counted from 0."""
    start_ns: int
    """When the function was called, in the nanoseconds of the run's clock."""
    end_ns: int
    """When it returned."""
    label: Label
    """The label of the item as it was before the call."""
    depth: int
    """Depth of the channel in front of the stage at `end_ns`; 0 for a source."""
    taken: Sequence[int] = ()
    """id() of each item that the call was given; empty for a source, and for the later elements of an expansion."""
    sent: Sequence[int] = ()
    """id() of each item that it made. While an item is in a channel no other has its id, so that both can be matched
    afterwards, and no item has to carry a number of ours: see `flow`."""


RawEvent = tuple[str, int, int, int, Label, int, Sequence[int], Sequence[int]]
"""The fields of a TraceEvent: a worker hands over a plain tuple, which costs a quarter of a named one."""


class Trace:
    """A recorder to hand to `Graph.start(trace=...)`."""

    def __init__(self, capacity: int = 100_000, first: int = 0) -> None:
        if capacity < 1 or first < 0:
            raise ValueError(f"a trace needs capacity >= 1 and first >= 0, got capacity={capacity}, first={first}")
        self.capacity = capacity
        """How many of the most recent events are kept."""
        self.first = first
        """How many of the earliest events are kept besides them."""
        # Workers only ever append. _head may pass `first` by one event a thread (they look, then append); reading
        # puts both in order of time, so such an event is just kept a little longer.
        self._recent: deque[RawEvent] = deque(maxlen=capacity)
        self._head: list[RawEvent] = []
        self.record: Callable[[RawEvent], None] = self._record_first if first else self._recent.append
        """Add an event. Called by workers; about 0.1 µs."""

    def _record_first(self, event: RawEvent) -> None:
        if len(self._head) < self.first:
            self._head.append(event)
        else:
            self._recent.append(event)

    def __len__(self) -> int:
        return len(self._head) + len(self._recent)

    def events(self) -> list[TraceEvent]:
        """Return what is kept, in order of start. May be called while a run records."""
        return sorted(map(TraceEvent._make, self._head + list(self._recent.copy())), key=lambda event: event[2:4])

    def clear(self) -> None:
        """Forget everything recorded so far. Only between runs."""
        self._head.clear()
        self._recent.clear()

    def write_chrome(self, path: str | os.PathLike[str], process: str = "pipeline") -> None:
        """Write Chrome trace JSON that Perfetto (https://ui.perfetto.dev) opens: one row per stage worker.

        Times are microseconds since the first event. The file appears whole or not at all.
        """
        document = {"displayTimeUnit": "ms", "traceEvents": chrome_events(self.events(), process)}
        target = Path(path)
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with aside.open("w", encoding="utf-8") as file:
                json.dump(document, file, separators=(",", ":"), default=str)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)


def rows(events: Iterable[TraceEvent]) -> dict[tuple[str, int], int]:
    """Number the (stage, worker) pairs: stages in the order in which they first ran, workers of a stage together."""
    events = list(events)
    stages = {stage: place for place, stage in enumerate(dict.fromkeys(event.stage for event in events))}
    pairs = sorted({(event.stage, event.worker) for event in events}, key=lambda pair: (stages[pair[0]], pair[1]))
    return {pair: row for row, pair in enumerate(pairs)}


def chrome_events(events: list[TraceEvent], process: str) -> list[dict[str, Any]]:
    """Return the trace events of the Chrome format: names of the rows first, then everything in order of time."""
    threads = rows(events)
    origin = events[0].start_ns if events else 0
    named: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": process}}]
    for (stage, worker), row in threads.items():
        where = {"ph": "M", "pid": 1, "tid": row + 1}
        named.append({**where, "name": "thread_name", "args": {"name": f"{stage}-{worker}"}})
        named.append({**where, "name": "thread_sort_index", "args": {"sort_index": row}})
    timed: list[dict[str, Any]] = []
    for event in events:
        # The row already says which stage it is; the batch is what one wants to read on the bar.
        name = f"{event.stage} {event.label['batch']}" if "batch" in event.label else event.stage
        timed.append(
            {
                "ph": "X",
                "name": name,
                "cat": event.stage,
                "pid": 1,
                "tid": threads[event.stage, event.worker] + 1,
                "ts": (event.start_ns - origin) / 1000,
                "dur": (event.end_ns - event.start_ns) / 1000,
                "args": {"stage": event.stage, **event.label},
            }
        )
        timed.append(
            {
                "ph": "C",
                "name": f"depth before {event.stage}",
                "pid": 1,
                "ts": (event.end_ns - origin) / 1000,
                "args": {"depth": event.depth},
            }
        )
    timed.sort(key=lambda each: each["ts"])
    return named + timed
