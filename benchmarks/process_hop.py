"""What a hop between two process stages costs, for nothing and for a large array: `python -m benchmarks.process_hop`.

A hop is the time from the end of the function in the first process to the beginning of the function in the second, by
the clock that all processes of a machine share: through the first worker's thread, the channel, and the second's. One
item is in flight at a time, so that no queue is measured. Kinds of items alternate within a run, the runs are repeated,
and the medians of the runs are reported; every item is checked in the second process first.
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
"""Microseconds that a hop of the array may cost above an empty item."""


class What(Enum):
    """What an item carries."""

    NOTHING = "nothing"
    SHARED = "array in a shared slot"
    PICKLED = "array, pickled"


@dataclass
class Parcel:
    """An item."""

    what: What
    number: int
    array: NDArray[Any] | None = None
    sent: int = 0  # when the first process was done with it
    hop: float = 0.0  # microseconds until the second process had it


def pack(parcel: Parcel) -> Parcel:
    """Write both ends of the array, in the first process."""
    if parcel.array is not None:
        parcel.array[0] = parcel.array[-1] = parcel.number
    parcel.sent = time.perf_counter_ns()
    return parcel


def unpack(parcel: Parcel) -> Parcel:
    """Check both ends of the array, in the second process."""
    parcel.hop = (time.perf_counter_ns() - parcel.sent) / 1e3
    array, parcel.array = parcel.array, None  # the way back is not measured
    if array is not None and not array[0] == array[-1] == parcel.number:
        raise AssertionError(f"parcel {parcel.number} arrived with {array[0]} and {array[-1]}")
    return parcel


def hops(pool: SharedPool, megabytes: int, rounds: int, pickled_rounds: int) -> dict[What, list[float]]:
    """Send items of all kinds in turn, one at a time, and return the microseconds of their hops."""
    size = megabytes * (1 << 20) // 4
    plain = np.zeros(size, np.float32)
    arrived = threading.Semaphore(1)

    def parcels() -> Iterator[Parcel]:
        for number in range(1, rounds + 1):
            kinds = list(What) if number <= pickled_rounds else [What.NOTHING, What.SHARED]
            for what in kinds if number % 2 else reversed(kinds):
                arrived.acquire()
                # A number that float32 holds exactly.
                yield Parcel(what, number, {What.SHARED: pool.empty(size), What.PICKLED: plain}.get(what))

    graph = Graph("hop")
    packed = graph.stage("pack", on_processes(pack), after=graph.source("draw", parcels))
    graph.sink("out", after=graph.stage("unpack", on_processes(unpack), after=packed))
    seen: dict[What, list[float]] = defaultdict(list)
    with graph.start(resources=[pool]) as run:
        for parcel in run:
            seen[parcel.what].append(parcel.hop)
            arrived.release()
    return seen


@click.command()
@click.option("--megabytes", default=64, show_default=True, help="Size of the array.")
@click.option("--rounds", default=1000, show_default=True, help="Items of each kind in a run.")
@click.option("--pickled-rounds", default=8, show_default=True, help="Items with the array pickled, which are slow.")
@click.option("--repeats", default=5, show_default=True, help="Runs.")
@click.option("--check", is_flag=True, help=f"Fail if the array costs more than {GOAL_US:g} µs above nothing.")
def main(megabytes: int, rounds: int, pickled_rounds: int, repeats: int, check: bool) -> None:
    """Measure and print the table."""
    warnings.filterwarnings("ignore", message=".* pickles .* for one item")
    with SharedPool(2, megabytes << 20, name="hop") as pool:
        print(pool)
        runs = [hops(pool, megabytes, rounds, pickled_rounds) for _ in range(repeats)]
    table = Table("item", "median µs", "spread of medians", "p90", "p99", "hops a run", box=None, padding=(0, 3, 0, 0))
    medians: dict[What, float] = {}
    for what in What:
        each = [statistics.median(run[what][len(run[what]) // 10 :]) for run in runs]  # the first ones warm up
        medians[what] = statistics.median(each)
        pooled = np.concatenate([run[what][len(run[what]) // 10 :] for run in runs])
        p90, p99 = np.percentile(pooled, [90, 99])
        label = what.value if what is What.NOTHING else f"{megabytes} MiB {what.value}"
        cells = (f"{medians[what]:,.1f}", f"{min(each):,.1f}-{max(each):,.1f}", f"{p90:,.1f}", f"{p99:,.1f}")
        table.add_row(label, *cells, str(len(runs[0][what])))
    Console(width=120).print(table)
    above = medians[What.SHARED] - medians[What.NOTHING]
    print(f"the shared array costs {above:.1f} µs above nothing; the goal is at most {GOAL_US:g} µs")
    if check and above > GOAL_US:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
