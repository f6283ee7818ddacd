"""Weight banks, and the frozen tensors that all of them share."""

from collections.abc import Mapping, Set
from typing import Any

from threadloom.kernels import Floats
from threadloom.pipeline import Arena
from threadloom.stages.layouts import as_weights
from threadloom.stages.memory.loss_scale import ScaleState
from threadloom.stages.memory.precision_memory import PrecisionMemory, arrays_bytes
from threadloom.stages.memory.spike_guard import GuardState
from threadloom.stages.models import Geometry, parameter_shapes, trained_shapes


class FrozenWeights:
    """The tensors that a run does not train: one copy, master and packed weights, for all versions.

    A run with adapters does not save them, so those that have packed weights need no master.
    """

    def __init__(self, geometry: Geometry, names: Set[str], memory: PrecisionMemory) -> None:
        """Allocate the tensors `names`."""
        self.packed_only: Set[str] = packed_only(geometry, names, memory)
        """Names of the tensors without a master."""
        shapes = parameter_shapes(geometry)
        self.arena = Arena({name: shapes[name] for name in shapes if name in names and name not in self.packed_only})
        self.packed = memory.allocate_packed(names)

    @property
    def nbytes(self) -> int:
        """Bytes of the master and the packed weights."""
        return self.arena.nbytes + arrays_bytes(self.packed or ())


def packed_only(geometry: Geometry, frozen: Set[str], memory: PrecisionMemory) -> Set[str]:
    """Return the names of the frozen tensors that have packed weights and no master."""
    return memory.packed_names & frozen if geometry.lora else frozenset()


def overlaid(tensors: Mapping[str, Floats], master: Mapping[str, Floats] | None) -> Mapping[str, Floats]:
    """Return `tensors` in their order, with those of `master` instead where it has them."""
    if master is None:
        return tensors
    return {name: master.get(name, tensor) for name, tensor in tensors.items()}


class Bank:
    """One version of the weights: the float32 master, and the packed weights if the number format has them."""

    def __init__(self, geometry: Geometry, packed: Any = None, frozen: FrozenWeights | None = None) -> None:
        """Allocate the master; `packed` comes from `PrecisionMemory.allocate_packed`, without the `frozen` tensors."""
        shared: Mapping[str, Floats] = frozen.arena if frozen else {}
        without_master = frozen.packed_only if frozen else frozenset()
        self.arena = Arena(parameter_shapes(geometry, shared.keys() | without_master))
        """The tensors that an update changes, those last that are computed from the others."""
        self.trained: Mapping[str, Floats] = {
            name: self.arena[name] for name in trained_shapes(geometry, shared.keys() | without_master)
        }
        """The tensors that the optimizer updates."""
        self.tensors: Mapping[str, Floats] = {
            name: shared[name] if name in shared else self.arena[name]
            for name in parameter_shapes(geometry, without_master)
        }
        """All tensors that have a master, frozen ones included, in the order of the table of shapes."""
        self.weights = as_weights(geometry, self.tensors)
        self.packed = _joined(packed, frozen.packed) if frozen else packed
        """Equal to the rounded master whenever the bank can be leased."""
        self.scaler = ScaleState()  # of the bank's version; during a run, Clip alone writes it
        self.guard = GuardState()  # likewise
        self.nbytes = self.arena.nbytes + arrays_bytes(packed or ())
        """Bytes of the master and the packed weights, without those of frozen tensors."""


def _joined(packed: Any, frozen: Any) -> Any:
    """Return the tuple of packed weights with each field from the tuple in which it has elements."""
    if packed is None:
        return None
    return type(packed)(*(own if own.size else shared for own, shared in zip(packed, frozen, strict=True)))
