"""The weights that a run starts from: their protocol, and random ones."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from threadloom.stages.models.architecture import Floats
from threadloom.stages.models.geometry import Geometry
from threadloom.stages.models.parameters import initialise, parameter_shapes


class InitialWeights(Protocol):
    """A source of the weights of a model."""

    def write(self, weights: Mapping[str, Floats]) -> None:
        """Write the given tensors, some of those of `parameter_shapes`."""

    def matrices(self, name: str) -> Iterator[Floats]:
        """Yield the matrices of a tensor (inputs, outputs), layer after layer, or the only one of an unstacked tensor.

        The array is valid until the next one: no more than one matrix is in memory.
        """


class RandomWeights:
    """The weights of a new model. Implements `InitialWeights`."""

    def __init__(self, geometry: Geometry, seed: int, *, residual_scaling: bool = True) -> None:
        self._geometry, self._seed, self._residual_scaling = geometry, seed, residual_scaling

    def write(self, weights: Mapping[str, Floats]) -> None:
        """Initialise the given tensors."""
        initialise(weights, self._geometry, self._seed, residual_scaling=self._residual_scaling)

    def matrices(self, name: str) -> Iterator[Floats]:
        """Yield the matrices of an initialised tensor."""
        shape = parameter_shapes(self._geometry)[name]
        tensor = np.empty(shape, np.float32)
        self.write({name: tensor})
        yield from tensor if len(shape) == 3 else [tensor]
