"""The parts in which rotated matrices are updated, and the memory of rotated bases."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from threadloom.kernels import Floats
from threadloom.pipeline import Arena, arena_size
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.models import Shape, Side, basis_shapes, rotated_sides, trained_shapes

ROWS = 256
"""Rows of a part, a multiple of the rows that are packed together in bfloat16."""
_BUFFERS = 3
"""Arrays of the size of a part that its update needs."""
_FLOAT = 4


@dataclass(frozen=True)
class MatrixPart:
    """Rows `first` … `last` - 1 of one matrix; `layer` is None for a matrix without layers."""

    name: str
    layer: int | None
    first: int
    last: int
    columns: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return (self.last - self.first) * self.columns

    def matrix(self, arena: Arena) -> Floats:
        """Return the whole matrix, or its basis, in an arena."""
        found: Floats = arena[self.name] if self.layer is None else arena[self.name][self.layer]
        return found

    def of(self, arena: Arena) -> Floats:
        """Return the part of an arena."""
        return self.matrix(arena)[self.first : self.last]


def matrix_parts(shapes: Mapping[str, Shape], sides: Mapping[str, Side]) -> Iterator[MatrixPart]:
    """Yield the parts of all rotated matrices: whole ones if they are rotated on their rows, else `ROWS` rows."""
    for name, side in sides.items():
        rows, columns = shapes[name][-2:]
        step = rows if side is Side.ROWS else ROWS
        layers: Iterable[int | None] = range(shapes[name][0]) if len(shapes[name]) == 3 else [None]
        for layer in layers:
            for first in range(0, rows, step):
                yield MatrixPart(name, layer, first, min(first + step, rows), columns)


def scratch_elements(shapes: Mapping[str, Shape], sides: Mapping[str, Side]) -> int:
    """Return the elements that the update of a part needs, at most; 0 without rotated matrices."""
    return _BUFFERS * max((part.elements for part in matrix_parts(shapes, sides)), default=0)


def bases_bytes(config: ResolvedConfig) -> int:
    """Return the bytes of the bases of a run; 0 without."""
    if not config.optimizer.rotation:
        return 0
    return arena_size(basis_shapes(config.geometry(), config.frozen_tensors())) * _FLOAT


def rotation_bytes(config: ResolvedConfig) -> int:
    """Return the bytes that rotated bases need beside themselves: turns, covariances, scratch of each thread."""
    if not config.optimizer.rotation:
        return 0
    geometry, frozen = config.geometry(), config.frozen_tensors()
    scratch = scratch_elements(trained_shapes(geometry, frozen), rotated_sides(geometry, frozen))
    return 2 * bases_bytes(config) + config.threads.update * scratch * _FLOAT
