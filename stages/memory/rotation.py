"""The parts in which rotated matrices are updated, and the memory of rotated bases."""

from collections.abc import Iterator, Mapping

from threadloom.pipeline import arena_size
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory.matrix_rows import MatrixRows, matrix_rows
from threadloom.stages.models import Shape, Side, basis_shapes, rotated_sides, trained_shapes

ROWS = 256
"""Rows of a part, a multiple of the rows that are packed together in bfloat16."""
_BUFFERS = 3
"""Arrays of the size of a part that its update needs."""
_FLOAT = 4


def rotated_parts(shapes: Mapping[str, Shape], sides: Mapping[str, Side]) -> Iterator[MatrixRows]:
    """Yield the parts of all rotated matrices: whole ones if they are rotated on their rows, else `ROWS` rows."""
    for name, side in sides.items():
        shape = shapes[name]
        yield from matrix_rows(name, shape, shape[-2] if side is Side.ROWS else ROWS)


def scratch_elements(shapes: Mapping[str, Shape], sides: Mapping[str, Side]) -> int:
    """Return the elements that the update of a part needs, at most; 0 without rotated matrices."""
    return _BUFFERS * max((part.elements for part in rotated_parts(shapes, sides)), default=0)


def bases_bytes(config: ResolvedConfig) -> int:
    """Return the bytes of the bases of a run; 0 without."""
    if not config.optimizer.rotation:
        return 0
    return arena_size(basis_shapes(config.geometry(), config.frozen_tensors())) * _FLOAT


def rotation_bytes(config: ResolvedConfig) -> int:
    """Return the bytes beside the bases: of the next ones, the turns to them, and the scratch of each thread."""
    if not config.optimizer.rotation:
        return 0
    geometry, frozen = config.geometry(), config.frozen_tensors()
    scratch = scratch_elements(trained_shapes(geometry, frozen), rotated_sides(geometry, frozen))
    return 2 * bases_bytes(config) + config.threads.update * scratch * _FLOAT
