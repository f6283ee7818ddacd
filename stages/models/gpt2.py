"""One table of name and shape, from which everything that holds a model's tensors is made.

The arenas (weights, gradients, AdamW's moments), the initialisation, the optimizer's decay and the checkpoint all read
the same table, so none of them can disagree with another about what a model consists of.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import arena_size, available_cores

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a GPT-2 model; everything about its tensors follows from these."""

    vocabulary: int
    context: int
    layers: int
    heads: int
    channels: int

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.channels


def parameter_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Return the shape of every field of `kernels.Weights`, in its order: matrices first, then vectors."""
    v, t, n, c, f = geometry.vocabulary, geometry.context, geometry.layers, geometry.channels, geometry.hidden
    return {
        "wte": (v, c),
        "wpe": (t, c),
        "qkv_weight": (n, c, 3 * c),
        "attn_proj_weight": (n, c, c),
        "fc_weight": (n, c, f),
        "mlp_proj_weight": (n, f, c),
        "ln1_weight": (n, c),
        "ln1_bias": (n, c),
        "qkv_bias": (n, 3 * c),
        "attn_proj_bias": (n, c),
        "ln2_weight": (n, c),
        "ln2_bias": (n, c),
        "fc_bias": (n, f),
        "mlp_proj_bias": (n, c),
        "lnf_weight": (c,),
        "lnf_bias": (c,),
    }


MATRICES = ("wte", "wpe", "qkv_weight", "attn_proj_weight", "fc_weight", "mlp_proj_weight")
"""The tensors that AdamW's weight decay applies to; they lead the table."""


def parameter_count(geometry: Geometry) -> int:
    """Return how many parameters the model has (padding not counted)."""
    return sum(prod(shape) for shape in parameter_shapes(geometry).values())


def input_gradient_bytes(geometry: Geometry, sequences: int) -> int:
    """Return the bytes of the embeddings' gradients (float32) and token ids (int32) of `sequences` sequences."""
    return 4 * sequences * geometry.context * (geometry.channels + 1)


def decayed_elements(geometry: Geometry) -> int:
    """Return how many leading elements of a parameter arena belong to matrices, and so decay."""
    shapes = parameter_shapes(geometry)
    return arena_size({name: shapes[name] for name in MATRICES})


def initialise(
    weights: Mapping[str, NDArray[np.float32]], geometry: Geometry, seed: int, residual_scaling: bool = True
) -> None:
    """Write GPT-2's initial weights into `weights`, the views of a parameter arena.

    Matrices are normal with a standard deviation of 0.02; with `residual_scaling` those that write to the residual
    stream have 0.02 / √(2 L) (Radford et al. 2019, section 2.3). LayerNorm weights are 1, biases 0. Each tensor has a
    generator of its own, Philox with the key (seed, place in the table), so that a tensor does not depend on the shapes
    of the others, nor on the thread that draws it: the tensors are shared among the cores, the largest first.
    """
    residual = 0.02 / sqrt(2 * geometry.layers) if residual_scaling else 0.02
    deviation = dict.fromkeys(MATRICES, 0.02) | {"attn_proj_weight": residual, "mlp_proj_weight": residual}

    def draw(place: int, name: str) -> None:
        tensor = weights[name]
        if name in deviation:
            key = np.array([seed, place], np.uint64)
            np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=tensor)
            tensor *= np.float32(deviation[name])
        else:
            tensor.fill(1.0 if name in ("ln1_weight", "ln2_weight", "lnf_weight") else 0.0)

    shapes = parameter_shapes(geometry)
    largest_first = sorted(enumerate(shapes), key=lambda entry: -prod(shapes[entry[1]]))
    with ThreadPoolExecutor(min(available_cores(), len(MATRICES)), "initialise") as pool:
        for drawn in [pool.submit(draw, place, name) for place, name in largest_first]:
            drawn.result()
