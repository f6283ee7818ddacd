"""A prompt, processed by the kernels of training, layer by layer, with the weights of generation in any format."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from threadloom import kernels
from threadloom.kernels import Floats, KVCache, TokenIds
from threadloom.kernels.common import NO_BORDERS
from threadloom.kernels.float32 import copy_rows
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.models import Geometry, architecture_of


class PromptLayers(Protocol):
    """The layers of a model with its weights, which the kernels of training run one at a time."""

    def activations(self, rows: int) -> Sequence[Any]:
        """Allocate the activations of one layer for `rows` tokens, as each of the threads that run it sees them."""

    def residual(self, activations: Sequence[Any]) -> Floats:
        """Return the residual stream (R, C) of the activations."""

    def run(self, number: int, activations: Sequence[Any]) -> None:
        """Run a layer on the residual stream, and fill the activations."""


def process_prompt(
    layers: PromptLayers, weights: ModelWeights, geometry: Geometry, ids: TokenIds, cache: KVCache
) -> Floats:
    """Process tokens from position 0, fill the cache, and return the last token's row (C,) after all layers."""
    rows = len(ids)
    activations = layers.activations(rows)
    x = layers.residual(activations)
    embed(weights, geometry, ids, x)
    for number in range(geometry.layers):
        layers.run(number, activations)
        of_layer = KVCache(cache.keys[number : number + 1], cache.values[number : number + 1])
        kernels.prefill_cache(activations[0].qkv, 0, rows, of_layer)
    last: Floats = x[rows - 1]
    return last


def embed(weights: ModelWeights, geometry: Geometry, ids: TokenIds, out: Floats) -> None:
    """Write the input embeddings of tokens at the positions 0 … R - 1 to `out` (R, C)."""
    rows = len(ids)
    if weights.wte.dtype != np.float32:
        tokens = np.empty_like(out)
        copy_rows(weights.wte, ids, tokens)
        weights, ids = weights._replace(wte=tokens), np.arange(rows, dtype=np.int32)
    layout_of(geometry).embed(weights, ids, rows, NO_BORDERS, out)


def stacked_matrices(geometry: Geometry) -> list[str]:
    """Return the matrices of the layers that generation may read in another number format."""
    once = architecture_of(geometry).unstacked
    return [name for name in layout_of(geometry).decode_matrices if name not in once]


def layer_of(weights: ModelWeights, geometry: Geometry, number: int) -> ModelWeights:
    """Return views of the weights of a model that consists of one of the layers."""
    once = architecture_of(geometry).unstacked
    fields = {name: w if name in once else w[number : number + 1] for name, w in weights._asdict().items()}
    layer: ModelWeights = layout_of(geometry).weights(**fields)
    return layer
