"""What every worker did and when, in bounded memory, for Perfetto (`write_chrome`) or a picture (`timeline`).

Guarantees: `record` is one append to a deque, which CPython makes atomic, so workers share a trace without a lock; at
most `capacity` events are kept, the most recent, and besides them the first `first` of the run. A run without a trace
does not come here at all.
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
        self._wiring = Wiring()  # set by `declare` alone, before the threads of a run start
        self.record: Callable[[RawEvent], None] = self._record_first if first else self._recent.append
        """Add an event. Called by workers; about 0.1 µs."""

    def _record_first(self, event: RawEvent) -> None:
        if len(self._head) < self.first:
            self._head.append(event)
        else:
            self._recent.append(event)

    def declare(self, after: Mapping[str, Sequence[str]], selective: Collection[str]) -> None:
        """Take the graph of the run to come: stage → stages before it, and stages that a `when` selects for.

        Called as the run is made. It is how arrows know their way; without it there are none.
        """
        self._wiring = Wiring(after, selective)

    def __len__(self) -> int:
        return len(self._head) + len(self._recent)

    def events(self) -> list[TraceEvent]:
        """Return what is kept, in order of start. May be called while a run records."""
        return _in_order(self._head + list(self._recent.copy()))

    def _sections(self) -> list[list[TraceEvent]]:
        """Return what is kept in stretches without a gap, so that no arrow leads across one."""
        head, recent = self._head.copy(), list(self._recent.copy())
        full = len(recent) == self.capacity  # so some may have been dropped between the two
        return [_in_order(head), _in_order(recent)] if full else [_in_order(head + recent)]

    def clear(self) -> None:
        """Forget everything recorded so far. Only between runs."""
        self._head.clear()
        self._recent.clear()

    def write_chrome(self, path: str | os.PathLike[str], process: str = "pipeline") -> None:
        """Write Chrome trace JSON that Perfetto (https://ui.perfetto.dev) opens: a row per worker, arrows along items.

        `chrome` says what is in it, `arrows` how an item is followed. Times are microseconds since the first event.
        The file appears whole or not at all.
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
