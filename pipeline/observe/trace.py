"""A trace of all calls of stage functions, in bounded memory, for Perfetto (`write_chrome`) or `draw_timeline`.

Guarantees: `record` is one append to a deque, which is atomic in CPython, so workers share a trace without a lock; the
trace keeps the `first` events of a run and the most recent `capacity` events. A run without a trace has no overhead.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from threadloom.pipeline.observe.arrows import Wiring
from threadloom.pipeline.observe.chrome import chrome_events
from threadloom.pipeline.observe.trace_event import RawEvent, TraceEvent


class Trace:
    """A recorder of events for `Graph.start(trace=...)`."""

    def __init__(self, capacity: int = 100_000, first: int = 0) -> None:
        if capacity < 1 or first < 0:
            raise ValueError(f"expected capacity >= 1 and first >= 0, got capacity={capacity}, first={first}")
        self.capacity = capacity
        """Number of most recent events kept."""
        self.first = first
        """Number of earliest events kept in addition."""
        # Workers only append. _head may exceed `first` by one event per thread (they check, then append); readers sort
        # by time, so such an event is only kept longer.
        self._recent: deque[RawEvent] = deque(maxlen=capacity)
        self._head: list[RawEvent] = []
        self._wiring = Wiring()  # changed only by `declare`, before the threads of a run start
        self.record: Callable[[RawEvent], None] = self._record_first if first else self._recent.append
        """Add an event. Called by workers; takes about 0.1 µs."""

    def _record_first(self, event: RawEvent) -> None:
        if len(self._head) < self.first:
            self._head.append(event)
        else:
            self._recent.append(event)

    def declare(self, after: Mapping[str, Sequence[str]], selective: Collection[str]) -> None:
        """Set the edges of the graph: `after` maps each stage to its predecessors; `selective` are stages with a
        `when`.

        Called when a run is created. Without it, `write_chrome` draws no arrows.
        """
        self._wiring = Wiring(after, selective)

    def __len__(self) -> int:
        return len(self._head) + len(self._recent)

    def events(self) -> list[TraceEvent]:
        """Return the kept events in order of start. May be called during a run."""
        return _in_order(self._head + list(self._recent.copy()))

    def _sections(self) -> list[list[TraceEvent]]:
        """Return the kept events in contiguous sections, so that no arrow crosses a gap."""
        head, recent = self._head.copy(), list(self._recent.copy())
        full = len(recent) == self.capacity  # events between the two may have been dropped
        return [_in_order(head), _in_order(recent)] if full else [_in_order(head + recent)]

    def clear(self) -> None:
        """Delete all events. Only between runs."""
        self._head.clear()
        self._recent.clear()

    def write_chrome(self, path: str | os.PathLike[str], process: str = "pipeline") -> None:
        """Write Chrome trace JSON for Perfetto (https://ui.perfetto.dev): one row per worker, with arrows along items.

        Times are microseconds since the first event. See `chrome` for the entries, and `arrows` for how items are
        followed. The file is written atomically.
        """
        document = {"displayTimeUnit": "ms", "traceEvents": chrome_events(self._sections(), self._wiring, process)}
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


def _in_order(events: list[RawEvent]) -> list[TraceEvent]:
    return sorted(map(TraceEvent.of, events), key=lambda event: event[2:4])
