"""The layers of a prompt in bfloat16. Loaded only when they are needed, since it loads the kernels of 16 bits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from threadloom.kernels import Floats
from threadloom.kernels.float32 import packed_from_blocks8
from threadloom.kernels.matmul import PANEL, packed_shape, prepare_bf16
from threadloom.pipeline import Arena
from threadloom.stages.config import Precision
from threadloom.stages.inference.layer_threads import LayerThreads
from threadloom.stages.inference.member_threads import MemberThreads
from threadloom.stages.inference.prompt import layer_of, stacked_matrices
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.layouts.bits16 import bits16_layout_of
from threadloom.stages.memory.bits16 import Bits16Memory
from threadloom.stages.models import Geometry, parameter_shapes


class Bf16Layers:
    """The layers in bfloat16. Implements `PromptLayers`.

    Packed weights are read where they are. Those in 8 bits are unpacked, rounded and packed, one layer at a time, which
    is all the memory that this takes.
    """

    def __init__(self, weights: ModelWeights, geometry: Geometry, threads: MemberThreads) -> None:
        """Take the weights, in either format of `stored_weights`."""
        self._weights, self._geometry = weights, geometry
        self._layout, self._bits16 = layout_of(geometry), bits16_layout_of(geometry)
        self._constants = self._layout.constants(geometry)
        self._threads = LayerThreads(self._bits16.kernels, self._bits16.team, geometry, threads)
        fields = self._bits16.packed_fields(geometry)
        self._fields = {name: fields[name] for name in stacked_matrices(geometry)}
        one_layer = replace(geometry, layers=1)
        self._without = Bits16Memory(Precision.BF16, one_layer, 1).allocate_packed(frozenset())
        shapes, as_bytes = parameter_shapes(geometry), weights.wte.dtype == np.int8
        packed = {name: packed_shape(*shapes[name][1:]) for name in self._fields} if as_bytes else {}
        self._packed = Arena({name: (1, *shape) for name, shape in packed.items()}, np.uint32)
        self._scales = np.empty(PANEL, np.float32)
        prepare_bf16()

    def activations(self, rows: int) -> Sequence[Any]:
        """Allocate the activations."""
        memory = Bits16Memory(Precision.BF16, replace(self._geometry, layers=1, context=rows), 1)
        first = memory.allocate_evaluation_slot().activations
        others = (memory.allocate_member_scratch() for _ in range(self._threads.members(rows) - 1))
        return [first, *(first._replace(thread=scratch["thread"]) for scratch in others)]

    def residual(self, activations: Sequence[Any]) -> Floats:
        """Return the residual stream."""
        x: Floats = activations[0].x
        return x

    def run(self, number: int, activations: Sequence[Any]) -> None:
        """Run the layer."""
        layer = layer_of(self._weights, self._geometry, number)
        packed = {field: self._operand(name, getattr(layer, name)) for name, field in self._fields.items()}
        weights = self._bits16.weights(_without_matrices(layer, self._geometry), self._without._replace(**packed))
        constants = self._layout.layer_constants(self._constants, number)
        self._threads.run(weights, activations, constants)

    def _operand(self, name: str, stored: Any) -> Any:
        """Return a packed matrix (1, panels, pairs, 32): the stored one, or that of 8 bits packed."""
        if stored.dtype != np.int8:
            return stored
        packed_from_blocks8(stored[0], self._scales, self._packed[name][0])
        return self._packed[name]


def _without_matrices(layer: ModelWeights, geometry: Geometry) -> ModelWeights:
    """Return the weights with float32 arrays without elements, and as many axes, for the matrices in other formats."""
    stacked = stacked_matrices(geometry)
    axes = {name: 3 if name in stacked else 2 for name in layout_of(geometry).decode_matrices}
    empty = {name: np.zeros((0,) * count, np.float32) for name, count in axes.items()}
    master: ModelWeights = layer._replace(**empty)
    return master
