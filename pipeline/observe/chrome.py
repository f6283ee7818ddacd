"""A trace in the Chrome Trace Event Format of https://ui.perfetto.dev and chrome://tracing.

| ph      | content                                                                                               |
| ------- | ----------------------------------------------------------------------------------------------------- |
| M       | names of the process and of the rows, one row per worker                                              |
| X       | one call of a stage function: a bar with its label, and the numbers of its source elements            |
| s, t, f | an item passing from bar to bar: start, step, finish; one id per chain of arrows                      |
| C       | depth of the input channel of a stage at the end of each call                                         |

Requirements of the format: `ts` and `dur` are in microseconds; bars of one row do not overlap; an event of a flow is
within its bar, and follows it in the file; `f` has "bp": "e", because by default it binds to the next bar. Flows with
the same id, category and name are one flow.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from threadloom.pipeline.observe.arrows import Wiring, arrows, chains, item_numbers
from threadloom.pipeline.observe.trace_event import TraceEvent

Entry = dict[str, Any]
FIRST = 2  # number of the first row: Perfetto regards thread 1 of process 1 as its main thread


def chrome_events(sections: Sequence[Sequence[TraceEvent]], wiring: Wiring, process: str) -> list[Entry]:
    """Return the entries: first the names of the rows, then the others in order of time.

    `sections` are contiguous sequences of events, each in order of start; arrows do not cross sections.
    """
    events = sorted((event for section in sections for event in section), key=lambda event: event[2:4])
    threads = worker_rows(events, wiring)
    origin = events[0].start_ns if events else 0
    timed: list[Entry] = []
    flows = 0
    for section in sections:
        drawn = arrows(section, wiring)
        steps: dict[int, list[tuple[str, int]]] = defaultdict(list)  # index in the section → (ph, id of the flow)
        for chain in chains(drawn):
            flows += 1
            for place in chain:
                steps[place].append(("s" if place == chain[0] else "f" if place == chain[-1] else "t", flows))
        for place, (event, items) in enumerate(zip(section, item_numbers(section, drawn, wiring), strict=True)):
            timed += _entries(event, threads[event.stage, event.worker] + FIRST, origin, items, steps[place])
            if not wiring.after or wiring.after.get(event.stage):
                timed.append(_depth(event, threads[event.stage, event.worker] + FIRST, origin))
    timed.sort(key=lambda entry: entry["ts"])  # stable: a bar stays before the events bound to it
    return [*_names(threads, process), *timed]


def worker_rows(events: Iterable[TraceEvent], wiring: Wiring) -> dict[tuple[str, int], int]:
    """Return (stage, worker) → row:

    stages in the order of the graph, or without a graph in the order of first events.
    """
    events = list(events)
    names = dict.fromkeys([*wiring.after, *(event.stage for event in events)])
    stages = {stage: place for place, stage in enumerate(names)}
    pairs = sorted({(event.stage, event.worker) for event in events}, key=lambda pair: (stages[pair[0]], pair[1]))
    return {pair: row for row, pair in enumerate(pairs)}


def _names(threads: dict[tuple[str, int], int], process: str) -> Iterator[Entry]:
    yield {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": process}}
    for (stage, worker), row in threads.items():
        where = {"ph": "M", "pid": 1, "tid": row + FIRST}
        yield {**where, "name": "thread_name", "args": {"name": f"{stage}-{worker}"}}
        yield {**where, "name": "thread_sort_index", "args": {"sort_index": row}}


def _entries(
    event: TraceEvent, thread: int, origin: int, items: tuple[int, ...], steps: list[tuple[str, int]]
) -> Iterator[Entry]:
    where = {"pid": 1, "tid": thread}
    # The row shows the stage; the text of the bar is the batch or the item.
    shown = event.label.get("batch", items[0] if len(items) == 1 else None)
    numbered = {"item": items[0]} if len(items) == 1 else {"items": ", ".join(map(str, items))} if items else {}
    yield {
        "ph": "X",
        "name": event.stage if shown is None else f"{event.stage} {shown}",
        "cat": event.stage,
        **where,
        "ts": (event.start_ns - origin) / 1000,
        "dur": (event.end_ns - event.start_ns) / 1000,
        "args": {"stage": event.stage, **numbered, **event.label},
    }
    for ph, number in steps:
        # Items arrive at the start of the call and leave at its end, minus 1 ns to be within the bar.
        at = max(event.start_ns, event.end_ns - 1) if ph == "s" else event.start_ns
        flow = {"ph": ph, "name": "item", "cat": "item", "id": number, **where, "ts": (at - origin) / 1000}
        yield {**flow, "bp": "e"} if ph == "f" else flow


def _depth(event: TraceEvent, thread: int, origin: int) -> Entry:
    return {
        "ph": "C",
        "name": f"channel before {event.stage}",
        "pid": 1,
        "tid": thread,
        "ts": (event.end_ns - origin) / 1000,
        "args": {"depth": event.depth},
    }
