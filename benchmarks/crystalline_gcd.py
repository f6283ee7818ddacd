"""The cost of a greatest common divisor next to that of a dot product: `python -m benchmarks.crystalline_gcd`.

The plans promise 10 to 100 times the speed, since "GCD is O(log n), dot product is O(n)"; the two n are different ones:
the number of a token, and the channels of its embedding.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from threadloom.kernels.common import gcd_table

PAIRS = 1_000_000
ROUNDS = 7


def nanoseconds(call: Callable[[], object], pairs: int) -> float:
    """Return the time of one of `pairs` operations in a call."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) / pairs * 1e9


def table(channels: list[int], rounds: int = ROUNDS, pairs: int = PAIRS) -> Table:
    """Measure all operations in alternating rounds and return their median times."""
    random = np.random.default_rng(0)
    calls: dict[str, tuple[Callable[[], object], int]] = {}
    for largest in (2_000, 10**9):
        a, b = random.integers(1, largest, (2, pairs))
        out = np.empty(pairs, np.int64)
        for binary in (False, True):
            gcd_table(a[:1], b[:1], out[:1], binary)
            name = f"gcd, {'binary' if binary else 'Euclid'}, numbers below {largest:,}"
            calls[name] = partial(gcd_table, a, b, out, binary), pairs
    for c in channels:
        x, w = random.standard_normal((512, c), np.float32), random.standard_normal((c, 2048), np.float32)
        y = np.empty((512, 2048), np.float32)
        calls[f"dot product in a matrix product, {c:,} channels"] = partial(np.dot, x, w, y), y.size
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, (call, count) in calls.items():
            times[name].append(nanoseconds(call, count))
    found = Table("operation", "ns", "of the first", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    first = median(next(iter(times.values()))[1:])
    for name, taken in times.items():
        found.add_row(name, f"{median(taken[1:]):.2f}", f"{median(taken[1:]) / first:.3f}")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--channels", default="64,128,256,1024,4096", show_default=True)
def main(channels: str) -> None:
    """Time greatest common divisors and dot products."""
    Console().print(table([int(c) for c in channels.split(",")]))


if __name__ == "__main__":
    main()
