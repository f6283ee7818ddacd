"""Rows of the matrices in an arena, the parts in which some updates divide them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from threadloom.kernels import Floats
from threadloom.pipeline import Arena
from threadloom.stages.models import Shape


@dataclass(frozen=True)
class MatrixRows:
    """Rows `first` … `last` - 1 of one matrix; `layer` is None for a matrix without layers."""

    name: str
    layer: int | None
    first: int
    last: int
    elements: int

    def matrix(self, arena: Arena) -> Floats:
        """Return the whole matrix, or what else an arena has of its name."""
        found: Floats = arena[self.name] if self.layer is None else arena[self.name][self.layer]
        return found

    def of(self, arena: Arena) -> Floats:
        """Return the rows in an arena."""
        return self.matrix(arena)[self.first : self.last]


def matrix_rows(name: str, shape: Shape, step: int) -> Iterator[MatrixRows]:
    """Yield the rows of a tensor of matrices, `step` at a time, layer by layer."""
    rows, columns = shape[-2:]
    layers: Iterable[int | None] = range(shape[0]) if len(shape) == 3 else [None]
    for layer in layers:
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield MatrixRows(name, layer, first, last, (last - first) * columns)


def balanced(parts: Iterable[MatrixRows], work: Callable[[MatrixRows], float], shards: int) -> list[list[MatrixRows]]:
    """Divide parts into shards of similar work: the largest first, each to the shard with the least so far."""
    groups: list[list[MatrixRows]] = [[] for _ in range(shards)]
    totals = [0.0] * shards
    works = {part: work(part) for part in parts}
    for part, amount in sorted(works.items(), key=lambda item: item[1], reverse=True):
        least = totals.index(min(totals))
        groups[least].append(part)
        totals[least] += amount
    return groups
