"""What one hop from stage to stage costs: ours beside a bare queue.Queue pipeline, SPDL and concurrent.futures.

    python -m benchmarks.hop                         # a table; --json FILE and --markdown FILE write it down too
    python -m benchmarks.hop --rounds 15 --items 20000

Three stages that do nothing, one thread each; a hop is what an item costs at each of the four channels that it goes
through. Everything is run in turn, round after round, in one process, and the median of the rounds is told: the machine
may be noisy, the ratios are what counts. Each pipeline's answer is checked before its time is taken down.

The aims: ours with statistics at most 1.3 times the bare pipeline at capacity 2, and a tenth of SPDL; a trace at most
1 µs more an event (a hop has one event); and a pipeline that waits uses no CPU. The trace is judged at the largest
capacity: what it adds is the same at each, and at capacity 2 it drowns in how the threads happen to take turns.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from typing import Any

from threadloom.pipeline import Graph, Trace

STAGES = 3
PEER = "spdl.pipeline"
CAPACITIES = (2, 64)
BARE_AT_MOST, SPDL_AT_MOST, EVENT_AT_MOST = 1.3, 0.1, 1.0

Contestant = Callable[[int, int], float]
"""(items, capacity) → seconds, start and end of the threads included."""


def same(item: int) -> int:
    """Do what each stage does: nothing."""
    return item


def bare(items: int, capacity: int) -> float:
    """Threads and bounded queues with nothing around them: no statistics, no errors, no cancellation."""
    queues: list[Queue[int | None]] = [Queue(capacity) for _ in range(STAGES + 1)]

    def source() -> None:
        for item in range(items):
            queues[0].put(item)
        queues[0].put(None)

    def work(stage: int) -> None:
        while (item := queues[stage].get()) is not None:
            queues[stage + 1].put(same(item))
        queues[stage + 1].put(None)

    threads = [threading.Thread(target=source)]
    threads += [threading.Thread(target=work, args=(stage,)) for stage in range(STAGES)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    out = list(iter(queues[STAGES].get, None))
    for thread in threads:
        thread.join()
    return _checked(out, items, began)


def _graph(items: Iterable[int] | Callable[[], Iterable[int]], capacity: int, workers: int = 1) -> Graph:
    graph = Graph("hop")
    node = graph.source("source", items)
    for stage in range(STAGES):
        node = graph.stage(f"stage{stage}", same, after=node, capacity=capacity, workers=workers)
    graph.sink("sink", after=node, capacity=capacity)
    return graph


def ours(items: int, capacity: int, trace: Trace | None = None) -> float:
    """Our pipeline; its statistics are always on."""
    graph = _graph(range(items), capacity)
    began = time.perf_counter()
    with graph.start(trace=trace) as run:
        out = list(run)
    return _checked(out, items, began)


def traced(items: int, capacity: int) -> float:
    """Our pipeline with every call recorded."""
    return ours(items, capacity, Trace(capacity=items * (STAGES + 1)))


def futures(items: int, capacity: int) -> float:
    """A chain of executors of one thread each, with at most `capacity` futures in flight in each."""

    def through(executor: ThreadPoolExecutor, source: Iterable[int]) -> Iterator[int]:
        flying: deque[Future[int]] = deque()
        for item in source:
            if len(flying) == capacity:
                yield flying.popleft().result()
            flying.append(executor.submit(same, item))
        while flying:
            yield flying.popleft().result()

    executors = [ThreadPoolExecutor(1) for _ in range(STAGES)]
    began = time.perf_counter()
    chain: Iterable[int] = range(items)
    for executor in executors:
        chain = through(executor, chain)
    out = list(chain)
    for executor in executors:
        executor.shutdown()
    return _checked(out, items, began)


def spdl(items: int, capacity: int) -> float:
    """SPDL's pipeline; its stages have buffers of their own, and `capacity` is that of its sink."""
    peer: Any = import_module(PEER)
    builder = peer.PipelineBuilder().add_source(range(items))
    for _ in range(STAGES):
        builder = builder.pipe(same, concurrency=1)
    pipeline = builder.add_sink(capacity).build(num_threads=STAGES)
    began = time.perf_counter()
    with pipeline.auto_stop():
        out = list(pipeline)
    return _checked(out, items, began)


def _checked(out: list[Any], items: int, began: float) -> float:
    seconds = time.perf_counter() - began
    if out != list(range(items)):
        raise AssertionError(f"of {items} items {len(out)} came out, or in another order")
    return seconds


CONTESTANTS: dict[str, tuple[Contestant, int]] = {
    "queue.Queue": (bare, 1),
    "ours": (ours, 1),
    "ours, traced": (traced, 1),
    "concurrent.futures": (futures, 1),
    "SPDL": (spdl, 10),
}
"""Name → how it is run, and by how much fewer items: a hop of SPDL takes so long."""


def measure_hops(names: Iterable[str], capacity: int, items: int, rounds: int) -> dict[str, list[float]]:
    """Return µs a hop, one figure a round, the contestants taking turns."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        # Backwards every other round, so that nobody always runs after the same neighbour.
        for name in list(found)[:: -1 if number % 2 else 1]:
            run, fewer = CONTESTANTS[name]
            many = max(items // fewer, 1)
            found[name].append(run(many, capacity) / many / (STAGES + 1) * 1e6)
    return found


def idle(seconds: float = 1.0, workers: int = 4) -> dict[str, float]:
    """Return the milliseconds of CPU that this process uses in `seconds` without and with a pipeline that waits."""

    def used() -> float:
        began = time.process_time()
        threading.Event().wait(seconds)
        return (time.process_time() - began) * 1e3

    entered, go_on = threading.Event(), threading.Event()

    def draw() -> Iterator[int]:
        yield 1
        entered.set()
        go_on.wait()

    without = used()
    with _graph(draw, 2, workers).start() as run:
        first = next(iter(run))
        entered.wait()
        waiting = used()
        go_on.set()
        rest = list(run)
    if (first, rest) != (1, []):
        raise AssertionError(f"an idle pipeline delivered {first} and {rest}")
    return {"seconds": seconds, "threads": STAGES * workers + 1, "without": without, "with": waiting}


def summary(found: dict[int, dict[str, list[float]]], waits: dict[str, float]) -> dict[str, Any]:
    """Return everything as plain data: medians, ratios of the medians, and whether the aims are met."""
    capacities = {}
    for capacity, figures in found.items():
        median = {name: statistics.median(each) for name, each in figures.items()}
        aims = {}
        if capacity == max(found):
            aims["a trace costs at most 1 µs an event"] = median["ours, traced"] - median["ours"] <= EVENT_AT_MOST
        if capacity == min(found):
            aims["at most 1.3 times queue.Queue"] = median["ours"] <= BARE_AT_MOST * median["queue.Queue"]
        if "SPDL" in median:
            aims["at most a tenth of SPDL"] = median["ours"] <= SPDL_AT_MOST * median["SPDL"]
        capacities[str(capacity)] = {
            "median_us": median,
            "times_bare": {name: each / median["queue.Queue"] for name, each in median.items()},
            "trace_us_an_event": median["ours, traced"] - median["ours"],
            "rounds_us": figures,
            "aims": aims,
        }
    return {
        "stages": STAGES,
        "capacities": capacities,
        "idle_cpu_ms": waits,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "spdl": version("spdl") if any("SPDL" in each for each in found.values()) else None,
    }


def hop_table(result: dict[str, Any]) -> str:
    """Return the figures as a table."""
    capacities = result["capacities"]
    names = list(next(iter(capacities.values()))["median_us"])
    lines = [
        "| µs a hop (times queue.Queue) | " + " | ".join(f"capacity {each}" for each in capacities) + " |",
        "| --- |" + " ---: |" * len(capacities),
    ]
    for name in names:
        cells = (f"{each['median_us'][name]:.2f} ({each['times_bare'][name]:.2f}×)" for each in capacities.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    events = (f"{each['trace_us_an_event']:.2f}" for each in capacities.values())
    lines.append(f"| a trace, µs an event | {' | '.join(events)} |")
    waits = result["idle_cpu_ms"]
    cpu = (
        f"CPU in {waits['seconds']:g} s of waiting: {waits['with']:.2f} ms with an idle pipeline of "
        f"{waits['threads']:.0f} threads, {waits['without']:.2f} ms without."
    )
    lines += [
        "",
        cpu,
        "",
        *(
            f"- capacity {capacity}: {aim}: {'yes' if met else 'NO'}"
            for capacity, each in capacities.items()
            for aim, met in each["aims"].items()
        ),
        "",
        f"CPython {result['python']}, {result['cores']} cores, SPDL {result['spdl'] or 'not installed'}.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="runs of each, of which the median counts (9)")
    parser.add_argument("--items", type=int, default=10_000, help="items a run; SPDL gets a tenth of them (10000)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    names = list(CONTESTANTS)
    if importlib.util.find_spec("spdl") is None:
        names.remove("SPDL")
        print("SPDL is not installed and is left out; `pip install spdl` brings it", file=sys.stderr)
    found = {each: measure_hops(names, each, arguments.items, arguments.rounds) for each in CAPACITIES}
    result = summary(found, idle())
    text = hop_table(result)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
