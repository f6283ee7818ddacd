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
from threadloom.kernels import Activations, DecodeScratch, Floats, Gpt2Constants, KVCache, TokenIds, Weights
from threadloom.pipeline import Arena
from threadloom.stages.config import InputError
from threadloom.stages.memory import activation_shapes
from threadloom.stages.models import Geometry, parameter_shapes

_PER_MODEL = frozenset({"wte", "wpe", "lnf_weight", "lnf_bias"})


class GenerationError(InputError):
    """A prompt, a token or weights that the model cannot be run with."""


class Decoder:
    """One sequence of a model, extended token by token. It owns its cache; one thread at a time may use it.

    Memory: the cache of 2·L·context·C elements and, during `prefill`, the activations of one layer. The weights must
    not change while the decoder is in use.
    """

    def __init__(self, weights: Weights, geometry: Geometry) -> None:
        """Raise `GenerationError` if the weights do not have the shapes of `geometry`."""
        _check_weights(weights, geometry)
        n, t, c, f = geometry.layers, geometry.context, geometry.channels, geometry.hidden
        self._weights = weights
        self._geometry = geometry
        self._constants = Gpt2Constants(geometry.heads)
        self._layers = [_layer(weights, number) for number in range(n)]
        cache = Arena({"keys": (n, t, c), "values": (n, t, c)})
        self._cache = KVCache(cache["keys"], cache["values"])
        scratch = Arena({"x": (c,), "h": (c,), "qkv": (3 * c,), "attn": (c,), "fc": (f,), "gelu": (f,), "scores": (t,)})
        self._scratch = DecodeScratch(*(scratch[name] for name in DecodeScratch._fields))
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
        views = Arena(activation_shapes(replace(self._geometry, layers=1, context=rows), 1))
        acts = Activations(*(views[name] for name in Activations._fields))
        kernels.embedding_forward(self._weights.wte, self._weights.wpe, recent, rows, acts.x[0])
        for number, layer in enumerate(self._layers):  # all layers share the activations of one
            kernels.blocks_forward(layer, acts, 1, self._constants)
            cache = KVCache(self._cache.keys[number : number + 1], self._cache.values[number : number + 1])
            kernels.prefill_cache(acts.qkv, 0, rows, cache)
            acts.x[0][...] = acts.x[1]
        kernels.next_logits(self._weights, acts.x[0, rows - 1], self._constants, self._scratch.h, self._logits)
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
        kernels.decode_token(
            self._weights, self._cache, token, self.position, self._constants, self._scratch, self._logits
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


def _layer(weights: Weights, number: int) -> Weights:
    """Return views of the weights of a model that consists of one of the layers."""
    fields = weights._asdict()
    return Weights(**{name: w if name in _PER_MODEL else w[number : number + 1] for name, w in fields.items()})


def _check_weights(weights: Weights, geometry: Geometry) -> None:
    for name, shape in parameter_shapes(geometry).items():
        tensor = getattr(weights, name)
        if tensor.shape != shape or tensor.dtype != np.float32 or not tensor.flags.c_contiguous:
            raise GenerationError(
                f"the weights' {name}",
                expected=f"C-contiguous float32 {shape}",
                got=f"{tensor.dtype} {tensor.shape}",
                hint="pass the geometry of the model that the weights belong to",
            )
