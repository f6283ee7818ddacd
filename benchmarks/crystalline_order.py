"""Time of embedding lookup and scatter by the order of the vocabulary: `python -m benchmarks.crystalline_order`.

Tokens are drawn from Zipf's law, p(rank) ~ 1 / (rank + 2.7) (Mandelbrot). The same tokens are looked up, and their
gradients scattered, with the rows of the embedding in several orders, which alternate within each round. Before each
call 64 MB of other memory are written, as the blocks of a model do between two lookups. Three calls are timed:

- the lookup (`kernels.float32.embedding_forward`),
- the scatter in the order of the rows (`kernels.common.token_embedding_backward`),
- the scatter in the order of the ids: a stable counting sort of them, then the same additions; equal tokens meet while
  their gradient is in a cache, and each row of the gradient has its summands in the same order.

`id` stands for the ids of a byte-pair tokenizer, which follow frequency roughly: ranks are sorted by
log(rank) + a normal number. `ulam` is `data.token_order=ulam_manhattan`; by rings it is `frequency`. `hilbert` puts the
n-th token at the n-th point of the Ulam spiral, and follows the Hilbert curve through them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from threadloom.kernels import Floats, TokenIds, embedding_forward
from threadloom.kernels.common import NO_BORDERS, token_embedding_backward
from threadloom.kernels.compiling import jit_kernel
from threadloom.stages.config import TokenOrder
from threadloom.stages.data import ulam_point, vocabulary_order

SEQUENCE = 64
"""Tokens of a sequence."""
OTHER_BYTES = 64 << 20

Ints = NDArray[np.int64]


@jit_kernel
def scatter_sorted(ids: TokenIds, dx: Floats, starts: TokenIds, by_id: TokenIds, d_wte: Floats) -> None:
    """Add `dx` (R, C) to `d_wte` (V, C) in the order of the ids; `starts` (V + 1,) and `by_id` (R,) are scratch."""
    starts.fill(0)
    for r in range(ids.shape[0]):
        starts[ids[r] + 1] += 1
    for v in range(1, starts.shape[0]):
        starts[v] += starts[v - 1]
    for r in range(ids.shape[0]):
        place = starts[ids[r]]
        by_id[place] = r
        starts[ids[r]] = place + 1
    for i in range(by_id.shape[0]):
        row, target = dx[by_id[i]], d_wte[ids[by_id[i]]]
        for j in range(row.shape[0]):
            target[j] += row[j]


def hilbert_index(x: Ints, y: Ints, bits: int) -> Ints:
    """Return the position along the Hilbert curve of points with coordinates of `bits` bits (Wikipedia, xy2d)."""
    x, y, index = x.copy(), y.copy(), np.zeros_like(x)
    for bit in reversed(range(bits)):
        right, upper = (x >> bit) & 1, (y >> bit) & 1
        index += ((3 * right) ^ upper) << (2 * bit)
        flipped = (upper == 0) & (right == 1)
        side = (1 << bits) - 1
        x, y = np.where(flipped, side - x, x), np.where(flipped, side - y, y)
        x, y = np.where(upper == 0, y, x), np.where(upper == 0, x, y)
    return index


def orders(vocabulary: int, random: np.random.Generator) -> dict[str, NDArray[np.int32]]:
    """Return name of an order → row of the token of each rank by frequency (V,)."""
    ranks = np.arange(vocabulary)
    x, y = ulam_point(ranks)
    low = min(int(x.min()), int(y.min()))
    bits = max(1, int(max(x.max(), y.max()) - low).bit_length())
    places = {
        "id": np.log(ranks + 1.0) + random.standard_normal(vocabulary),
        "frequency": ranks,
        "hilbert": hilbert_index(x - low, y - low, bits),
        "random": random.permutation(vocabulary),
    }
    rows = {name: _inverse(np.argsort(place, kind="stable")) for name, place in places.items()}
    counts = ranks[::-1].astype(np.int64)
    return rows | {"ulam": vocabulary_order(TokenOrder.ULAM_MANHATTAN, counts).rows}


def _inverse(order: Ints) -> NDArray[np.int32]:
    rows = np.empty(len(order), np.int32)
    rows[order] = np.arange(len(order), dtype=np.int32)
    return rows


@dataclass(frozen=True)
class Sizes:
    """The sizes of one comparison."""

    vocabulary: int
    channels: int
    rows: int


def measured(sizes: Sizes, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Return order → call → median time of a row in nanoseconds."""
    random = np.random.default_rng(seed)
    v, c, r = sizes.vocabulary, sizes.channels, sizes.rows
    probabilities = 1.0 / (np.arange(v) + 2.7)
    probabilities /= probabilities.sum()
    wte, wpe, out, dx = (random.standard_normal((n, c), np.float32) for n in (v, SEQUENCE, r, r))
    d_wte, other = np.zeros((v, c), np.float32), np.zeros(OTHER_BYTES // 8)
    starts, by_id = np.zeros(v + 1, np.int32), np.zeros(r, np.int32)
    rows_of = orders(v, random)
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in rows_of}
    for _ in range(rounds + 1):  # the first one compiles
        tokens = random.choice(v, r, p=probabilities)
        for name, rows in rows_of.items():
            ids = rows[tokens]
            calls: Mapping[str, Callable[[], None]] = {
                "lookup": lambda ids=ids: embedding_forward(wte, wpe, ids, SEQUENCE, NO_BORDERS, out),  # type: ignore[misc]
                "scatter": lambda ids=ids: token_embedding_backward(ids, dx, d_wte, True),  # type: ignore[misc]
                "scatter, sorted": lambda ids=ids: scatter_sorted(ids, dx, starts, by_id, d_wte),  # type: ignore[misc]
            }
            for call, compute in calls.items():
                other += 1.0
                begin = time.perf_counter()
                compute()
                seconds[name].setdefault(call, []).append(time.perf_counter() - begin)
    return {
        name: {call: float(np.median(found[1:])) / r * 1e9 for call, found in calls.items()}
        for name, calls in seconds.items()
    }


@click.command()
@click.option("--vocabulary", "vocabularies", type=click.IntRange(min=2), multiple=True, default=(65, 10_000, 50_000),
              show_default=True, help="Tokens. Repeatable.")  # fmt: skip
@click.option("--channels", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--rows", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of a call.")
@click.option("--rounds", type=click.IntRange(min=1), default=51, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(vocabularies: tuple[int, ...], channels: int, rows: int, rounds: int, seed: int) -> None:
    """Compare orders of the vocabulary."""
    table = Table("V", "order", "lookup", "scatter", "scatter, sorted", title=f"ns a row of {channels} channels")
    for vocabulary in vocabularies:
        for name, calls in measured(Sizes(vocabulary, channels, rows), rounds, seed).items():
            table.add_row(f"{vocabulary:,}", name, *(f"{value:.1f}" for value in calls.values()))
        table.add_section()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
