"""Weight banks, and the view of a parameter arena as the tuple that kernels take."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from threadloom.kernels import Weights
from threadloom.pipeline import Arena
from threadloom.stages.memory.loss_scale import ScaleState
from threadloom.stages.memory.precision_memory import arrays_bytes
from threadloom.stages.models import Geometry, parameter_shapes


def as_weights(views: Mapping[str, np.ndarray]) -> Weights:
    """Return the views of a parameter arena as the tuple that kernels take."""
    return Weights(*(views[name] for name in Weights._fields))


class Bank:
    """One full copy of the weights: the float32 master, and the packed weights if the number format has them."""

    def __init__(self, geometry: Geometry, packed: Any = None) -> None:
        """Allocate the master; `packed` comes from `PrecisionMemory.allocate_packed`."""
        self.arena = Arena(parameter_shapes(geometry))
        self.weights = as_weights(self.arena)
        self.packed = packed  # equal to the rounded master whenever the bank can be leased
        self.scaler = ScaleState()  # of the bank's version; during a run, Clip alone writes it

    @property
    def nbytes(self) -> int:
        """Bytes of the master and the packed weights."""
        return self.arena.nbytes + arrays_bytes(self.packed or ())
