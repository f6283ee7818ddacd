"""The cost of one hop from stage to stage: threadloom compared with bare queue.Queue, SPDL and concurrent.futures.

    python -m benchmarks.hop                         # prints a table; --json FILE and --markdown FILE also write it
    python -m benchmarks.hop --rounds 15 --items 20000

A hop is the handoff of one item through one channel. Each pipeline has three stages that do nothing, with one thread
each, so an item makes four hops. The pipelines run alternately, for several rounds, in one process; the medians of the
rounds are reported. The machine may be noisy: compare ratios. The output of each pipeline is checked before its time is
recorded.

Goals: threadloom, with statistics, needs at most 1.3 times the time of queue.Queue at capacity 2 and a tenth of SPDL's;
a trace adds at most 1 µs per event (one event per hop); a waiting pipeline uses no CPU time. The trace is assessed at
the largest capacity: its cost is the same at each, and at capacity 2 it is lost in scheduling noise.
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
    """Return the item: the function of every stage."""
    return item


def bare_hops(items: int, capacity: int) -> float:
    """Run threads and bounded queues without statistics, error handling or cancellation."""
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


def our_hops(items: int, capacity: int, trace: Trace | None = None) -> float:
    """Run a threadloom pipeline; its statistics are always on."""
    graph = _graph(range(items), capacity)
    began = time.perf_counter()
    with graph.start(trace=trace) as run:
        out = list(run)
    return _checked(out, items, began)


def traced_hops(items: int, capacity: int) -> float:
    """Run a threadloom pipeline with every call recorded."""
    return our_hops(items, capacity, Trace(capacity=items * (STAGES + 1)))


def future_hops(items: int, capacity: int) -> float:
    """Run a chain of single-thread executors with at most `capacity` futures in flight in each."""

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


def spdl_hops(items: int, capacity: int) -> float:
    """Run an SPDL pipeline; its stages have buffers of a fixed size, and `capacity` is that of its sink."""
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
        raise AssertionError(f"the pipeline delivered {len(out)} of {items} items, or delivered them out of order")
    return seconds


CONTESTANTS: dict[str, tuple[Contestant, int]] = {
    "queue.Queue": (bare_hops, 1),
    "ours": (our_hops, 1),
    "ours, traced": (traced_hops, 1),
    "concurrent.futures": (future_hops, 1),
    "SPDL": (spdl_hops, 10),
}
"""Name → (function, divisor of the number of items, because a hop of SPDL is slow)."""


def measure_hops(names: Iterable[str], capacity: int, items: int, rounds: int) -> dict[str, list[float]]:
    """Return µs per hop, one value per round; the contestants run alternately."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        # In reverse order in every other round, so that no contestant always runs after the same one.
        for name in list(found)[:: -1 if number % 2 else 1]:
            run, divisor = CONTESTANTS[name]
            count = max(items // divisor, 1)
            found[name].append(run(count, capacity) / count / (STAGES + 1) * 1e6)
    return found


def idle(seconds: float = 1.0, workers: int = 4) -> dict[str, float]:
    """Return the CPU time in ms that this process uses in `seconds`, without and with a waiting pipeline."""

    def used() -> float:
        began = time.process_time()
        threading.Event().wait(seconds)
        return (time.process_time() - began) * 1e3

    entered, resume = threading.Event(), threading.Event()

    def draw() -> Iterator[int]:
        yield 1
        entered.set()
        resume.wait()

    without = used()
    with _graph(draw, 2, workers).start() as run:
        first = next(iter(run))
        entered.wait()
        waiting = used()
        resume.set()
        rest = list(run)
    if (first, rest) != (1, []):
        raise AssertionError(f"an idle pipeline delivered {first} and {rest}")
    return {"seconds": seconds, "threads": STAGES * workers + 1, "without": without, "with": waiting}


def summary(found: dict[int, dict[str, list[float]]], waits: dict[str, float]) -> dict[str, Any]:
    """Return the results as plain data: medians, ratios of the medians, and whether the goals are met."""
    capacities = {}
    for capacity, figures in found.items():
        median = {name: statistics.median(each) for name, each in figures.items()}
        aims = {}
        if capacity == max(found):
            aims["a trace costs at most 1 µs per event"] = median["ours, traced"] - median["ours"] <= EVENT_AT_MOST
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
    """Return the results as a Markdown table."""
    capacities = result["capacities"]
    names = list(next(iter(capacities.values()))["median_us"])
    lines = [
        "| µs per hop (relative to queue.Queue) | " + " | ".join(f"capacity {each}" for each in capacities) + " |",
        "| --- |" + " ---: |" * len(capacities),
    ]
    for name in names:
        cells = (f"{each['median_us'][name]:.2f} ({each['times_bare'][name]:.2f}×)" for each in capacities.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    events = (f"{each['trace_us_an_event']:.2f}" for each in capacities.values())
    lines.append(f"| trace, µs per event | {' | '.join(events)} |")
    waits = result["idle_cpu_ms"]
    cpu = (
        f"CPU time in {waits['seconds']:g} s of waiting: {waits['with']:.2f} ms with an idle pipeline of "
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
    parser.add_argument(
        "--rounds", type=int, default=9, help="runs of each pipeline, of which the median is reported (9)"
    )
    parser.add_argument("--items", type=int, default=10_000, help="items per run; SPDL gets a tenth of them (10000)")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    names = list(CONTESTANTS)
    if importlib.util.find_spec("spdl") is None:
        names.remove("SPDL")
        print("SPDL is not installed and is left out (pip install spdl)", file=sys.stderr)
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
