"""Text from a model, one token at a time, with the keys and values of the tokens before kept in a cache.

The model sees at most its context. A longer prompt is cut to its last `context` tokens; when a generation reaches the
context's end, the last half of it (the newest token included) is taken in anew from position 0, and the generation goes
on from there. Positions are learned, so a cached key is of use at its own position only and cannot be shifted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from threadloom import kernels
from threadloom.kernels import Activations, DecodeScratch, Floats, KVCache, TokenIds, Weights
from threadloom.pipeline import Arena
from threadloom.stages.config import InputError
from threadloom.stages.inference.sampling import SamplingSettings, sample_token, seeded
from threadloom.stages.memory import activation_shapes
from threadloom.stages.models import Geometry, parameter_shapes

_PER_MODEL = frozenset({"wte", "wpe", "lnf_weight", "lnf_bias"})


class GenerationError(InputError):
    """A prompt, or weights, with which the model cannot be run."""


def generate(
    weights: Weights,
    geometry: Geometry,
    prompt_ids: Sequence[int] | NDArray[np.integer],
    tokens: int,
    settings: SamplingSettings,
    seed: int,
) -> Iterator[int]:
    """Yield `tokens` token ids that continue the prompt, each as soon as it is drawn.

    The weights must not change until the last one is taken. Everything is checked before this returns: raises
    `GenerationError` or `SamplingError`.
    """
    rng = seeded(seed)
    prompt = checked_ids(prompt_ids, geometry)
    if tokens < 0:
        raise _refused("tokens", "a number of at least 0", str(tokens), "a slip in the call", "ask for 0 or more")
    decoder = Decoder(weights, geometry)
    return _continue(decoder, prompt, tokens, settings, rng)


def _continue(
    decoder: "Decoder", prompt: TokenIds, tokens: int, settings: SamplingSettings, rng: np.random.Generator
) -> Iterator[int]:
    token = 0
    for number in range(tokens):
        logits = decoder.take(token) if number else decoder.start(prompt)
        token = sample_token(logits, settings, rng)
        yield token


def checked_ids(ids: Sequence[int] | NDArray[np.integer], geometry: Geometry) -> TokenIds:
    """Return ids as int32 (n,), at least one, each in the vocabulary: compiled kernels check no bounds."""
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        found = f"shape {array.shape} of {array.dtype}"
        remedy = "begin with a text of at least one character"
        raise _refused("the prompt", "at least one token id", found, "the prompt is empty", remedy)
    outside = array[(array < 0) | (array >= geometry.vocabulary)]
    if outside.size:
        raise _refused(
            "the prompt",
            f"token ids from 0 to {geometry.vocabulary - 1}",
            f"{outside[0]}",
            "it was encoded with the tokenizer of another model",
            "encode it with the tokenizer beside the checkpoint",
        )
    return array.astype(np.int32)


class Decoder:
    """A model that takes one sequence in, token by token; it owns the cache and belongs to one thread at a time.

    Memory: the cache, 2·L·context·C numbers, and while a prompt is taken in the activations of one layer.
    """

    def __init__(self, weights: Weights, geometry: Geometry) -> None:
        _check_weights(weights, geometry)
        n, t, c, f = geometry.layers, geometry.context, geometry.channels, geometry.hidden
        self._weights = weights
        self._geometry = geometry
        self._layers = [_layer(weights, number) for number in range(n)]
        cache = Arena({"keys": (n, t, c), "values": (n, t, c)})
        self._cache = KVCache(cache["keys"], cache["values"])
        scratch = Arena({"x": (c,), "h": (c,), "qkv": (3 * c,), "attn": (c,), "fc": (f,), "gelu": (f,), "scores": (t,)})
        self._scratch = DecodeScratch(*(scratch[name] for name in DecodeScratch._fields))
        self._logits: Floats = Arena({"logits": (geometry.vocabulary,)})["logits"]
        self._seen: list[int] = []  # the tokens in the cache, by position; only `start` and `take` change it

    @property
    def position(self) -> int:
        """How many tokens are in the cache."""
        return len(self._seen)

    def start(self, ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        """Forget everything, take the last `context` of `ids` in at once, and return the next token's logits (V,).

        The logits are the decoder's own, and overwritten by the next call.
        """
        recent = checked_ids(ids, self._geometry)[-self._geometry.context :]
        rows = len(recent)
        views = Arena(activation_shapes(replace(self._geometry, layers=1, context=rows), 1))
        acts = Activations(*(views[name] for name in Activations._fields))
        kernels.embedding_forward(self._weights.wte, self._weights.wpe, recent, rows, acts.x[0])
        for number, layer in enumerate(self._layers):  # layer by layer in one layer's memory
            kernels.blocks_forward(layer, acts, 1, self._geometry.heads)
            cache = KVCache(self._cache.keys[number : number + 1], self._cache.values[number : number + 1])
            kernels.prefill_cache(acts.qkv, 0, rows, cache)
            acts.x[0][...] = acts.x[1]
        kernels.next_logits(self._weights, acts.x[0, rows - 1], self._scratch.h, self._logits)
        self._seen = recent.tolist()
        return self._logits

    def take(self, token: int) -> Floats:
        """Take one more token in and return the next one's logits (V,), the decoder's own; begins anew when full."""
        if not 0 <= token < self._geometry.vocabulary:
            checked_ids([token], self._geometry)
        if self.position == self._geometry.context:
            half = max(self._geometry.context // 2, 1)
            return self.start([*self._seen, token][-half:])
        kernels.decode_token(
            self._weights, self._cache, token, self.position, self._geometry.heads, self._scratch, self._logits
        )
        self._seen.append(token)
        return self._logits


def _layer(weights: Weights, number: int) -> Weights:
    """Return the model that has only one of the layers, as views."""
    fields = weights._asdict()
    return Weights(**{name: w if name in _PER_MODEL else w[number : number + 1] for name, w in fields.items()})


def _check_weights(weights: Weights, geometry: Geometry) -> None:
    for name, shape in parameter_shapes(geometry).items():
        tensor = getattr(weights, name)
        if tensor.shape != shape or tensor.dtype != np.float32 or not tensor.flags.c_contiguous:
            needed, found = f"C-contiguous float32 {shape}", f"{tensor.dtype} {tensor.shape}"
            cause, remedy = "the weights are of another model", "give the geometry that they were made with"
            raise _refused(f"the weights' {name}", needed, found, cause, remedy)


def _refused(subject: str, needed: str, found: str, cause: str, remedy: str) -> GenerationError:
    return GenerationError(subject, expected=needed, got=found, cause=cause, hint=remedy)
