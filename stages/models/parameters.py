"""The tensors of a model as its architecture lays them out: shapes, counts, decay, initial values."""

from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np

from threadloom.pipeline import arena_size, available_cores
from threadloom.stages.models.architecture import Floats
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.registry import architecture_of

NONE_FROZEN: frozenset[str] = frozenset()


def parameter_shapes(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> dict[str, Shape]:
    """Return name → shape of every tensor that is not `frozen`, in the order of the arena: decayed ones first."""
    shapes = architecture_of(geometry).parameter_shapes(geometry)
    return {name: shape for name, shape in shapes.items() if name not in frozen}


def parameter_count(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> int:
    """Return the number of parameters that are not `frozen`, without padding."""
    return sum(map(prod, parameter_shapes(geometry, frozen).values()))


def multiplied_parameters(geometry: Geometry) -> int:
    """Return the number of parameters that take part in a multiplication per token: all but those only looked up."""
    shapes = parameter_shapes(geometry)
    return parameter_count(geometry) - sum(prod(shapes[name]) for name in architecture_of(geometry).gathered(geometry))


def decayed_elements(geometry: Geometry, trained: Set[str] | None = None) -> int:
    """Return the number of leading elements that weight decay applies to, of an arena of the `trained` tensors.

    None: of all tensors.
    """
    matrices = architecture_of(geometry).matrices
    decayed = {name for name in matrices if trained is None or name in trained}
    return arena_size({name: shape for name, shape in parameter_shapes(geometry).items() if name in decayed})


def initialise(weights: Mapping[str, Floats], geometry: Geometry, seed: int, *, residual_scaling: bool = True) -> None:
    """Write the initial weights of the geometry's architecture into `weights`, the views of a parameter arena.

    Each tensor has its own generator, Philox with the key (seed, index in the table), so it does not depend on the
    shapes of the others. The tensors are distributed over the cores, the largest first.
    """
    shapes = parameter_shapes(geometry)
    values = architecture_of(geometry).initial_values(geometry, residual_scaling=residual_scaling)

    def draw(index: int, name: str) -> None:
        tensor, value = weights[name], values[name]
        if not value.deviation:
            tensor.fill(value.constant)
            return
        key = np.array([seed, index], np.uint64)
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=tensor)
        tensor *= np.float32(value.deviation)

    largest_first = sorted(enumerate(shapes), key=lambda entry: -prod(shapes[entry[1]]))
    drawn = sum(value.deviation > 0 for value in values.values())
    with ThreadPoolExecutor(min(available_cores(), drawn), "initialise") as pool:
        for done in [pool.submit(draw, index, name) for index, name in largest_first]:
            done.result()
