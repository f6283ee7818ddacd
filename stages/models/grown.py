"""Growing a model: more channels and heads by an integer factor, more layers, and the same function.

`stages.models.growth` derives the rules. Arrays of any floating-point type are grown, so that a test can do without
rounding.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import Arena
from threadloom.stages.models.geometry import Geometry
from threadloom.stages.models.growth import TensorGrowth
from threadloom.stages.models.parameters import initialise, parameter_shapes
from threadloom.stages.models.registry import architecture_of

Array = NDArray[Any]
Tensors = Mapping[str, Array]

_STREAM = 0x67726F77
"""Changes a seed, so that growth does not repeat the numbers that the first weights were drawn from."""


class Placement(enum.Enum):
    """The places of inserted layers."""

    END = "end"
    """After the last layer."""
    EVEN = "even"
    """Spread evenly among the layers."""


@dataclass(frozen=True)
class Growth:
    """A step from a model to a larger one."""

    small: Geometry
    factor: int = 1
    """Multiple of the channels, the heads and the hidden layer of the MLP."""
    layers: int = 0
    """Number of inserted layers."""
    placement: Placement = Placement.END
    noise: float = 0.0
    """Standard deviation of the noise by which the copies of a matrix differ."""
    seed: int = 0
    """Seed of the noise and of the inserted layers."""

    @property
    def sources(self) -> tuple[int | None, ...]:
        """The layer of the small model that each layer of the grown one comes from; None: an inserted one."""
        old, new = self.small.layers, self.layers
        if self.placement is Placement.END:
            after = [old] * new
        else:  # the middles of `new` equal parts of the model, rounded up
            after = [-(-(2 * part + 1) * old // (2 * new)) for part in range(new)]
        found: list[int | None] = [None] * after.count(0)
        for layer in range(old):
            found += [layer, *[None] * after.count(layer + 1)]
        return tuple(found)

    @property
    def geometry(self) -> Geometry:
        """The sizes of the grown model."""
        return architecture_of(self.small).grown(self.small, self.factor, self.sources)

    def inserted(self) -> Tensors:
        """Return the tensors of the inserted layers: random, and zeros where they write to the residual stream."""
        if not self.layers:
            return {}
        rules, geometry = architecture_of(self.small).growth(self.small), replace(self.geometry, layers=self.layers)
        shapes = {name: shape for name, shape in parameter_shapes(geometry).items() if self._stacked(name)}
        tensors = Arena(shapes)
        initialise(tensors, geometry, self.seed ^ _STREAM)
        for name, rule in rules.items():
            if name in tensors and rule.writes_residual:
                tensors[name].fill(0.0)
        return tensors

    def write_weights(self, source: Tensors, target: Tensors, inserted: Tensors) -> None:
        """Write the grown weights of the tensors in `source` into `target`, with the layers that `inserted` returned.

        All versions of the weights get the same noise.
        """
        names = tuple(parameter_shapes(self.small))
        rules = architecture_of(self.small).growth(self.small)
        for name, tensor in source.items():
            rule = rules[name]
            for old, new, layer in self._layers(name, tensor, target[name]):
                np.copyto(new, self._repeated(old, rule))
                if rule.divided:
                    new /= new.dtype.type(self.factor)
                if rule.summed is not None and self.factor > 1 and self.noise:
                    new += self._noise(new.shape, rule.summed, names.index(name), layer).astype(new.dtype)
            self._fill_inserted(name, target[name], inserted.get(name))

    def write_moments(self, source: Tensors, target: Tensors, power: int) -> None:
        """Write the grown means of the gradient (`power` 1) or of its square (2) into `target`.

        They are 0 in inserted layers.
        """
        rules = architecture_of(self.small).growth(self.small)
        for name, tensor in source.items():
            rule = rules[name]
            for old, new, _ in self._layers(name, tensor, target[name]):
                np.copyto(new, self._repeated(old, rule))
                if not rule.shared_gradient:
                    new /= new.dtype.type(self.factor**power)
            self._fill_inserted(name, target[name], None)

    def _stacked(self, name: str) -> bool:
        return name not in architecture_of(self.small).unstacked

    def _layers(self, name: str, tensor: Array, target: Array) -> list[tuple[Array, Array, int]]:
        """Return the small and the grown view of each layer that is not inserted, and the layer of the small model."""
        if not self._stacked(name):
            return [(tensor, target, 0)]
        return [(tensor[old], target[new], old) for new, old in enumerate(self.sources) if old is not None]

    def _fill_inserted(self, name: str, target: Array, inserted: Array | None) -> None:
        """Write the inserted layers of a stacked tensor; None: zeros."""
        if self._stacked(name):
            places = [new for new, old in enumerate(self.sources) if old is None]
            for index, place in enumerate(places):
                target[place] = 0.0 if inserted is None else inserted[index]

    def _repeated(self, tensor: Array, rule: TensorGrowth) -> Array:
        """Return the copies of a tensor side by side."""
        for axis, blocks in rule.repeated:
            parts = np.split(tensor, np.cumsum(blocks)[:-1], axis)
            tensor = np.concatenate([part for part in parts for _ in range(self.factor)], axis)
        return tensor

    def _noise(self, shape: tuple[int, ...], axis: int, tensor: int, layer: int) -> NDArray[np.float64]:
        """Return the noise of a grown matrix, whose k parts along `axis` sum to 0.

        The parts are k normal draws minus their mean, and scaled back to the deviation of the draws.
        """
        key = np.array([self.seed ^ _STREAM, tensor], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, layer, 1], np.uint64)))
        split = list(shape)
        split[axis : axis + 1 or None] = [self.factor, shape[axis] // self.factor]
        copies = len(split) + axis - 1
        drawn = generator.standard_normal(split)
        drawn -= drawn.mean(axis=copies, keepdims=True)
        drawn *= self.noise / np.sqrt(1.0 - 1.0 / self.factor)
        return drawn.reshape(shape)
