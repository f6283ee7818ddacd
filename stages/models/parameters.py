"""The tensors of a model as its architecture lays them out: shapes, counts, decay, initial values."""

from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod, sqrt

import numpy as np

from threadloom.pipeline import arena_size, available_cores
from threadloom.stages.models.architecture import Floats, InitialValue
from threadloom.stages.models.geometry import Geometry, Shape
from threadloom.stages.models.lora import lora_shapes, lora_zeros
from threadloom.stages.models.registry import architecture_of

NONE_FROZEN: frozenset[str] = frozenset()


def parameter_shapes(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> dict[str, Shape]:
    """Return name → shape of every tensor that is not `frozen`, in the order of the arena: decayed ones first.

    The tensors of adapters follow the matrices. The factors of a token embedding lead the table, and the embedding,
    which is computed from them, ends it: so the trained tensors lie one after another. With residues there is none.
    """
    architecture = architecture_of(geometry)
    shapes = architecture.parameter_shapes(geometry)
    matrices = {name: shape for name, shape in shapes.items() if name in architecture.matrices}
    table = {**dict(geometry.factors), **matrices, **lora_shapes(geometry), **shapes}
    if geometry.factors and geometry.residues:
        del table[token_embedding(geometry)]
    derived = {name: table.pop(name) for name in derived_tensors(geometry)}
    return {name: shape for name, shape in {**table, **derived}.items() if name not in frozen}


def derived_tensors(geometry: Geometry) -> frozenset[str]:
    """Return the names of the tensors that are computed from others after every update: the embedding of factors."""
    return frozenset({token_embedding(geometry)} if geometry.factors and not geometry.residues else ())


def token_embedding(geometry: Geometry) -> str:
    """Return the name of the token embedding."""
    layout = architecture_of(geometry).huggingface
    return layout.parts(geometry)[layout.token_embedding].tensor


def whole_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return `parameter_shapes` and, if it does not exist in memory, the token embedding: what a checkpoint holds."""
    return parameter_shapes(geometry) | {token_embedding(geometry): (geometry.vocabulary, geometry.channels)}


def trained_shapes(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> dict[str, Shape]:
    """Return name → shape of the tensors that the optimizer updates, which lead the table of `parameter_shapes`."""
    return parameter_shapes(geometry, frozen | derived_tensors(geometry))


def parameter_count(geometry: Geometry, frozen: Set[str] = NONE_FROZEN) -> int:
    """Return the number of trained parameters that are not `frozen`, without padding and the zeros of adapters."""
    zeros = sum(count for name, count in lora_zeros(geometry).items() if name not in frozen)
    return sum(map(prod, trained_shapes(geometry, frozen).values())) - zeros


def multiplied_parameters(geometry: Geometry) -> int:
    """Return the number of parameters that take part in a multiplication per token: all but those only looked up."""
    of_residues = (geometry.vocabulary - geometry.projection_rows) * geometry.channels
    bands, geometry = geometry.bands, replace(geometry, factors=(), bands=(), residues=None)
    shapes = parameter_shapes(geometry)
    gathered = sum(prod(shapes[name]) for name in architecture_of(geometry).gathered(geometry))
    return parameter_count(geometry) - gathered - _saved_by(bands, geometry) - of_residues


def _saved_by(bands: tuple[tuple[int, int], ...], geometry: Geometry) -> int:
    """Return how many multiplications of a token's output projection bands of low rank save."""
    channels = geometry.channels
    return sum(tokens * (channels - rank) - (rank * channels if rank < channels else 0) for tokens, rank in bands)


def decayed_elements(geometry: Geometry, trained: Set[str] | None = None) -> int:
    """Return the number of leading elements that weight decay applies to, of an arena of the `trained` tensors.

    None: of all tensors.
    """
    decayed = {name for name in decayed_tensors(geometry) if trained is None or name in trained}
    return arena_size({name: shape for name, shape in trained_shapes(geometry).items() if name in decayed})


def decayed_tensors(geometry: Geometry) -> frozenset[str]:
    """Return the names of the tensors that weight decay applies to: the matrices."""
    return frozenset((*dict(geometry.factors), *architecture_of(geometry).matrices, *lora_shapes(geometry)))


def initialise(weights: Mapping[str, Floats], geometry: Geometry, seed: int, *, residual_scaling: bool = True) -> None:
    """Write the initial weights of the geometry's architecture into `weights`, the views of a parameter arena.

    Adapters are initialised as in PEFT: `a` as torch.nn.Linear, uniform within 1 / √inputs, `b` with zeros. Only the
    tensors in `weights` are written.
    Each tensor has its own generator, Philox with the key (seed, index in the table), so it does not depend on the
    shapes of the others. The tensors are distributed over the cores, the largest first. Factors are left as they are.
    """
    shapes = parameter_shapes(replace(geometry, factors=()))  # the index of a tensor does not depend on factors
    values = architecture_of(geometry).initial_values(geometry, residual_scaling=residual_scaling)
    values |= {name: _adapter_value(shape) for name, shape in lora_shapes(geometry).items() if name.endswith("_a")}

    def draw(index: int, name: str) -> None:
        tensor, value = weights[name], values.get(name, InitialValue())
        if not (value.deviation or value.bound):
            tensor.fill(value.constant)
            return
        generator = keyed_generator(seed, index)
        if value.deviation:
            generator.standard_normal(dtype=np.float32, out=tensor)
            tensor *= np.float32(value.deviation)
        else:
            generator.random(dtype=np.float32, out=tensor)
            tensor *= np.float32(2 * value.bound)
            tensor -= np.float32(value.bound)

    written = [(index, name) for index, name in enumerate(shapes) if name in weights]
    largest_first = sorted(written, key=lambda entry: -prod(shapes[entry[1]]))
    drawn = max(sum(value.deviation > 0 or value.bound > 0 for value in values.values()), 1)
    with ThreadPoolExecutor(min(available_cores(), drawn), "initialise") as pool:
        for done in [pool.submit(draw, index, name) for index, name in largest_first]:
            done.result()


def keyed_generator(seed: int, key: int) -> np.random.Generator:
    """Return the generator of a tensor's initial values: Philox with the key (seed, `key`), one key for each tensor.

    The tensors of the table have their index in it; keys from 1,000 on are those of tensors outside of it.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64)))


def _adapter_value(shape: Shape) -> InitialValue:
    """Return the distribution of the first matrices of adapters, (L, P, inputs): that of torch.nn.Linear."""
    return InitialValue(bound=1 / sqrt(shape[2]))
