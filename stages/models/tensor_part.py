"""The part of a tensor that is a tensor in another layout."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models.geometry import Shape


@dataclass(frozen=True)
class TensorPart:
    """A part of a tensor of `parameter_shapes`: one layer of it, some of its columns, transposed or not."""

    tensor: str
    """Name in `parameter_shapes`."""
    layer: int | None = None
    """Index along the first axis. None: the tensor is not stacked."""
    columns: tuple[int, int] | None = None
    """First column, and the one after the last. None: all."""
    transposed: bool = False
    """True: the other layout stores (outputs, inputs)."""

    def view(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the view of this part of the whole tensor: read it to save a model, write to it to load one."""
        part = tensor if self.layer is None else tensor[self.layer]
        if self.columns is not None:
            part = part[..., slice(*self.columns)]
        return part.T if self.transposed else part

    def shape(self, shape: Shape) -> Shape:
        """Return the shape of this part of a tensor of a shape."""
        return self.view(np.broadcast_to(np.float32(0.0), shape)).shape
