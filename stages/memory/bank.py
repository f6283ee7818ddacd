"""Weight banks."""

from typing import Any

from threadloom.pipeline import Arena
from threadloom.stages.layouts import as_weights
from threadloom.stages.memory.loss_scale import ScaleState
from threadloom.stages.memory.precision_memory import arrays_bytes
from threadloom.stages.models import Geometry, parameter_shapes


class Bank:
    """One full copy of the weights: the float32 master, and the packed weights if the number format has them."""

    def __init__(self, geometry: Geometry, packed: Any = None) -> None:
        """Allocate the master; `packed` comes from `PrecisionMemory.allocate_packed`."""
        self.arena = Arena(parameter_shapes(geometry))
        self.weights = as_weights(geometry, self.arena)
        self.packed = packed  # equal to the rounded master whenever the bank can be leased
        self.scaler = ScaleState()  # of the bank's version; during a run, Clip alone writes it

    @property
    def nbytes(self) -> int:
        """Bytes of the master and the packed weights."""
        return self.arena.nbytes + arrays_bytes(self.packed or ())
