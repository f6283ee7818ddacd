"""The layers of a prompt in float32."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from threadloom.kernels import Floats, GemmBackend, blas_info
from threadloom.kernels.float32 import float32_from_blocks8, float32_from_packed
from threadloom.kernels.matmul import PANEL
from threadloom.pipeline import Arena
from threadloom.stages.inference.layer_threads import LayerThreads
from threadloom.stages.inference.member_threads import MemberThreads
from threadloom.stages.inference.prompt import layer_of, stacked_matrices
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.memory import Float32Memory
from threadloom.stages.models import Geometry, parameter_shapes


class Float32Layers:
    """The layers in float32. Implements `PromptLayers`.

    Memory, if the weights are in another format: the matrices of one layer.
    """

    def __init__(self, weights: ModelWeights, geometry: Geometry, threads: MemberThreads) -> None:
        self._weights, self._geometry = weights, geometry
        self._layout = layout_of(geometry)
        self._constants = self._layout.constants(geometry)
        self._threads = LayerThreads(self._layout.kernels, self._layout.team, geometry, threads)
        stored = weights.wte.dtype != np.float32
        shapes = parameter_shapes(geometry)
        self._matrices = Arena({name: (1, *shapes[name][1:]) for name in stacked_matrices(geometry)} if stored else {})
        self._scales = np.empty(PANEL, np.float32)

    def activations(self, rows: int) -> Sequence[Any]:
        """Allocate the activations.

        Only Numba's products are divided among threads: a library's may round a part in another way.
        """
        memory = Float32Memory(replace(self._geometry, layers=1, context=rows), 1)
        first = memory.allocate_evaluation_slot().activations
        members = self._threads.members(rows) if blas_info(load=False).backend is GemmBackend.NUMBA else 1
        others = (memory.allocate_member_scratch() for _ in range(members - 1))
        return [first, *(first._replace(scores=scratch["scores"][0]) for scratch in others)]

    def residual(self, activations: Sequence[Any]) -> Floats:
        """Return the residual stream before the layer."""
        x: Floats = activations[0].x[0]
        return x

    def run(self, number: int, activations: Sequence[Any]) -> None:
        """Run the layer, and copy the residual stream after it to the place of that before the next one."""
        layer = layer_of(self._weights, self._geometry, number)
        for name, matrix in self._matrices.items():
            stored = getattr(layer, name)[0]
            if stored.dtype == np.int8:
                float32_from_blocks8(stored, self._scales, matrix[0])
            else:
                float32_from_packed(stored, matrix[0])
        if self._matrices:
            unused = dict.fromkeys(self._layout.decode_matrices, self.residual(activations))  # of the types in float32
            layer = layer._replace(**{**unused, **self._matrices})
        constants = self._layout.layer_constants(self._constants, number)
        self._threads.run(layer, activations, constants)
        self.residual(activations)[...] = activations[0].x[1]
