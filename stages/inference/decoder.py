"""A model that processes one sequence token by token, with a cache of keys and values.

The model sees at most its context. A longer prompt is truncated to its last `context` tokens. When the cache is full,
its last half (the newest token included) is processed again from position 0 and decoding continues from there:
positions are learned, so a cached key is valid at its own position only and cannot be shifted.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from threadloom import kernels
from threadloom.kernels import Floats, KVCache, TokenIds
from threadloom.kernels.common import NO_BORDERS
from threadloom.pipeline import Arena
from threadloom.stages.config import InputError
from threadloom.stages.inference.stored_weights import stored_shape
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.models import Geometry, architecture_of, parameter_shapes


class GenerationError(InputError):
    """A prompt, a token or weights that the model cannot be run with."""


class Decoder:
    """One sequence of a model, extended token by token. It owns its cache; one thread at a time may use it.

    Memory: the cache of 2·L·context·K·D elements and, during `prefill`, the activations of one layer. The weights must
    not change while the decoder is in use.
    """

    def __init__(self, weights: ModelWeights, geometry: Geometry, stored: ModelWeights | None = None) -> None:
        """Make a decoder that reads `stored` (`stored_weights`) for each token, and `weights` for a prompt.

        By default both are `weights`. If `stored` are not in float32, keys and values are cached in bfloat16. Raises
        `GenerationError` if the weights do not have the shapes of `geometry`.
        """
        _check_weights(weights, geometry)
        if stored is not None:
            _check_stored(stored, geometry)
        n, t, width = geometry.layers, geometry.context, geometry.key_value_width
        self._layout = layout = layout_of(geometry)
        self._weights = weights
        self._stored = weights if stored is None else stored
        self._geometry = geometry
        self._constants = layout.constants(geometry)
        self._layers = [_layer(weights, geometry, number) for number in range(n)]
        format_of_cache = np.float32 if self._stored.wte.dtype == np.float32 else np.uint16
        cache = Arena({"keys": (n, t, width), "values": (n, t, width)}, format_of_cache)
        self._cache = KVCache(cache["keys"], cache["values"])
        self._scratch = layout.decode_scratch(**Arena(layout.decode_scratch_shapes(geometry)))
        self._logits: Floats = Arena({"logits": (geometry.vocabulary,)})["logits"]
        self._cached: list[int] = []  # tokens in the cache, by position; modified by prefill and append alone

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return len(self._cached)

    def prefill(self, ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        """Clear the cache, process the last `context` of `ids` at once, and return the next token's logits (V,).

        The logits belong to the decoder and are overwritten by the next call.
        """
        recent = checked_ids(ids, self._geometry)[-self._geometry.context :]
        rows = len(recent)
        one_layer = replace(self._geometry, layers=1, context=rows)
        arrays = Arena(self._layout.activation_shapes(one_layer, 1))
        acts = self._layout.activations(**arrays, dropout_key=np.zeros(1, np.uint64), starts=NO_BORDERS)
        self._layout.embed(self._weights, recent, rows, NO_BORDERS, acts.x[0])
        for number, layer in enumerate(self._layers):  # all layers share the activations of one
            constants = self._layout.layer_constants(self._constants, number)
            self._layout.kernels.blocks_forward(layer, acts, 1, constants)
            cache = KVCache(self._cache.keys[number : number + 1], self._cache.values[number : number + 1])
            kernels.prefill_cache(acts.qkv, 0, rows, cache)
            acts.x[0][...] = acts.x[1]
        self._layout.decode.next_logits(
            self._stored, acts.x[0, rows - 1], self._constants, self._scratch.h, self._logits
        )
        self._cached = recent.tolist()
        return self._logits

    def append(self, token: int) -> Floats:
        """Process one more token and return the next token's logits (V,); refills half of the cache if it is full.

        The logits belong to the decoder and are overwritten by the next call.
        """
        if not 0 <= token < self._geometry.vocabulary:
            checked_ids([token], self._geometry)
        if self.position == self._geometry.context:
            half = max(self._geometry.context // 2, 1)
            return self.prefill([*self._cached, token][-half:])
        self._layout.decode.decode_token(
            self._stored, self._cache, token, self.position, self._constants, self._scratch, self._logits
        )
        self._cached.append(token)
        return self._logits


def checked_ids(ids: Sequence[int] | NDArray[np.integer], geometry: Geometry) -> TokenIds:
    """Return ids as int32 (n,), n > 0. Compiled kernels check no bounds, so ids outside the vocabulary raise here."""
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise GenerationError(
            "the prompt",
            expected="at least one token id",
            got=f"shape {array.shape} of {array.dtype}",
            hint="start from a text of at least one character",
        )
    outside = array[(array < 0) | (array >= geometry.vocabulary)]
    if outside.size:
        raise GenerationError(
            "the prompt",
            expected=f"token ids from 0 to {geometry.vocabulary - 1}",
            got=f"{outside[0]}",
            hint="encode the text with the tokenizer of the model's checkpoint",
        )
    return array.astype(np.int32)


def _layer(weights: ModelWeights, geometry: Geometry, number: int) -> ModelWeights:
    """Return views of the weights of a model that consists of one of the layers."""
    once = architecture_of(geometry).unstacked
    fields = {name: w if name in once else w[number : number + 1] for name, w in weights._asdict().items()}
    layer: ModelWeights = layout_of(geometry).weights(**fields)
    return layer


def _check_weights(weights: ModelWeights, geometry: Geometry) -> None:
    for name, shape in parameter_shapes(geometry).items():
        tensor = getattr(weights, name)
        if tensor.shape != shape or tensor.dtype != np.float32 or not tensor.flags.c_contiguous:
            raise GenerationError(
                f"the weights' {name}",
                expected=f"C-contiguous float32 {shape}",
                got=f"{tensor.dtype} {tensor.shape}",
                hint="pass the geometry of the model that the weights belong to",
            )


def _check_stored(stored: ModelWeights, geometry: Geometry) -> None:
    shapes, matrices = parameter_shapes(geometry), layout_of(geometry).decode_matrices
    for name in {*shapes, *matrices}:
        tensor = getattr(stored, name)
        shape = shapes.get(name, shapes["wte"])  # a projection that is tied is not among the parameters
        known = name in matrices or tensor.dtype == np.float32
        if not known or tensor.shape != stored_shape(shape, tensor.dtype) or not tensor.flags.c_contiguous:
            raise GenerationError(
                f"the stored weights' {name}",
                expected=f"the form of {shape} that stored_weights gives",
                got=f"{tensor.dtype} {tensor.shape}",
                hint="convert the weights of the model with stored_weights",
            )
