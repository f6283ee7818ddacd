"""The cost of a hop between two process stages, for no data and for a large array: `python -m benchmarks.process_hop`.

A hop is the time from the end of the function in the first process to the start of the function in the second, through
the threads of both workers and the channel between them; both processes read the same system clock. One item is in
flight at a time, so that no queueing is measured. The kinds of items alternate within a run, the runs are repeated, and
the medians of the runs are reported. The second process checks every item.
"""

import statistics
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from threadloom.pipeline import Graph, SharedPool, on_processes

GOAL_US = 100.0
"""Largest additional cost of a hop with the array, compared with an empty item, in microseconds."""


class Content(Enum):
    """The content of an item."""

    EMPTY = "empty"
    SHARED = "array in a shared slot"
    PICKLED = "array, pickled"


@dataclass
class Parcel:
    """An item."""

    content: Content
    number: int
    array: NDArray[Any] | None = None
    sent: int = 0  # end of the function in the first process, in ns
    hop: float = 0.0  # microseconds until the start of the function in the second process


def pack(parcel: Parcel) -> Parcel:
    """Write the first and the last element of the array, in the first process."""
    if parcel.array is not None:
        parcel.array[0] = parcel.array[-1] = parcel.number
    parcel.sent = time.perf_counter_ns()
    return parcel


def unpack(parcel: Parcel) -> Parcel:
    """Check the first and the last element of the array, in the second process."""
    parcel.hop = (time.perf_counter_ns() - parcel.sent) / 1e3
    array, parcel.array = parcel.array, None  # the way back to the parent is not measured
    if array is not None and not array[0] == array[-1] == parcel.number:
        raise AssertionError(f"parcel {parcel.number} arrived with {array[0]} and {array[-1]}")
    return parcel


def hops(pool: SharedPool, megabytes: int, rounds: int, pickled_rounds: int) -> dict[Content, list[float]]:
    """Send items of all kinds alternately, one at a time, and return the durations of their hops in microseconds."""
    size = megabytes * (1 << 20) // 4
    plain = np.zeros(size, np.float32)
    arrived = threading.Semaphore(1)

    def parcels() -> Iterator[Parcel]:
        for number in range(1, rounds + 1):
            kinds = list(Content) if number <= pickled_rounds else [Content.EMPTY, Content.SHARED]
            for content in kinds if number % 2 else reversed(kinds):
                arrived.acquire()
                # float32 represents these numbers exactly.
                yield Parcel(content, number, {Content.SHARED: pool.empty(size), Content.PICKLED: plain}.get(content))

    graph = Graph("hop")
    packed = graph.stage("pack", on_processes(pack), after=graph.source("draw", parcels))
    graph.sink("out", after=graph.stage("unpack", on_processes(unpack), after=packed))
    seen: dict[Content, list[float]] = defaultdict(list)
    with graph.start(resources=[pool]) as run:
        for parcel in run:
            seen[parcel.content].append(parcel.hop)
            arrived.release()
    return seen


@click.command()
@click.option("--megabytes", default=64, show_default=True, help="Size of the array.")
@click.option("--rounds", default=1000, show_default=True, help="Items of each kind per run.")
@click.option("--pickled-rounds", default=8, show_default=True, help="Items with the array pickled, which are slow.")
@click.option("--repeats", default=5, show_default=True, help="Runs.")
@click.option(
    "--check", is_flag=True, help=f"Fail if the array costs more than {GOAL_US:g} µs in addition to an empty item."
)
def main(megabytes: int, rounds: int, pickled_rounds: int, repeats: int, check: bool) -> None:
    """Measure and print the table."""
    warnings.filterwarnings("ignore", message=".* pickles .* for one item")
    with SharedPool(2, megabytes << 20, name="hop") as pool:
        print(pool)
        runs = [hops(pool, megabytes, rounds, pickled_rounds) for _ in range(repeats)]
    table = Table(
        "item", "median µs", "spread of medians", "p90", "p99", "hops per run", box=None, padding=(0, 3, 0, 0)
    )
    medians: dict[Content, float] = {}
    for content in Content:
        each = [
            statistics.median(run[content][len(run[content]) // 10 :]) for run in runs
        ]  # the first tenth is warm-up
        medians[content] = statistics.median(each)
        pooled = np.concatenate([run[content][len(run[content]) // 10 :] for run in runs])
        p90, p99 = np.percentile(pooled, [90, 99])
        label = content.value if content is Content.EMPTY else f"{megabytes} MiB {content.value}"
        cells = (f"{medians[content]:,.1f}", f"{min(each):,.1f}-{max(each):,.1f}", f"{p90:,.1f}", f"{p99:,.1f}")
        table.add_row(label, *cells, str(len(runs[0][content])))
    Console(width=120).print(table)
    above = medians[Content.SHARED] - medians[Content.EMPTY]
    print(f"the shared array costs {above:.1f} µs more than an empty item; the goal is at most {GOAL_US:g} µs")
    if check and above > GOAL_US:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
