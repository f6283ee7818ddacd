"""The matrices that an optimizer may update in a rotated basis (`optimizer.rotation`), and the shapes of the bases."""

import enum
from collections.abc import Set

from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.parameters import NONE_FROZEN, decayed_tensors, trained_shapes


class Side(enum.Enum):
    """The side of a matrix that is rotated; its value is the axis of the shape."""

    ROWS = -2
    COLUMNS = -1


def rotated_sides(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> dict[str, Side]:
    """Return the trained matrices, by tensor, and the smaller side of each; columns of a square one."""
    matrices = decayed_tensors(geometry)
    shapes = {name: shape for name, shape in trained_shapes(geometry, frozen).items() if name in matrices}
    return {name: Side.ROWS if shape[-2] < shape[-1] else Side.COLUMNS for name, shape in shapes.items()}


def basis_shapes(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> dict[str, Shape]:
    """Return the shapes of the bases, by tensor: (L, k, k), or (k, k) of a matrix without layers."""
    shapes, sides = trained_shapes(geometry, frozen), rotated_sides(geometry, frozen)
    return {name: (*shapes[name][:-2], *2 * (shapes[name][side.value],)) for name, side in sides.items()}
