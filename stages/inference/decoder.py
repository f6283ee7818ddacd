"""A model that processes one sequence token by token, with a cache of keys and values.

The model sees at most its context. A longer prompt is truncated to its last `context` tokens. When the cache is full,
its last half (the newest token included) is processed again from position 0 and decoding continues from there:
positions are learned, so a cached key is valid at its own position only and cannot be shifted.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats, KVCache, TokenIds
from threadloom.kernels.common import Team
from threadloom.pipeline import Arena
from threadloom.stages.config import InputError
from threadloom.stages.inference.member_threads import MemberThreads
from threadloom.stages.inference.prompt import process_prompt
from threadloom.stages.inference.prompt_formats import prompt_layers
from threadloom.stages.inference.stored_weights import stored_shape
from threadloom.stages.inference.thread_choice import ThreadChoice
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.models import Geometry, parameter_shapes


class GenerationError(InputError):
    """A prompt, a token or weights that the model cannot be run with."""


class Decoder:
    """One sequence of a model, extended token by token. It owns its cache; one thread at a time may use it.

    Memory: the cache of 2·L·context·K·D elements, during `prefill` the activations of one layer and, if the weights are
    not in the format that its kernels read, the matrices of one layer. The weights must not change while the decoder is
    in use.

    Several threads may divide the work of a long prompt and of each token; the bits do not depend on their number. One
    thread decodes tokens as long as that is faster (`stages.inference.thread_choice`). The threads are started by the
    first work that they divide, and end when the decoder is closed, or after a fraction of a second without a token.
    """

    def __init__(self, weights: ModelWeights, geometry: Geometry, threads: int = 1) -> None:
        """Make a decoder of weights in float32, or in the format that `stored_weights` has converted them to.

        If they are not in float32, keys and values are cached in bfloat16. `threads` is the largest number of threads,
        the caller's included. Raises `GenerationError` if the weights do not have the shapes of `geometry`, or if there
        is no thread.
        """
        _check_weights(weights, geometry)
        if threads < 1:
            raise GenerationError("threads", expected="a number of at least 1", got=str(threads))
        n, t, width = geometry.layers, geometry.context, geometry.key_value_width
        self._layout = layout = layout_of(geometry)
        self._weights = weights
        self._geometry = geometry
        self._constants = layout.constants(geometry)
        format_of_cache = np.float32 if weights.wte.dtype == np.float32 else np.uint16
        cache = Arena({"keys": (n, t, width), "values": (n, t, width)}, format_of_cache)
        self._cache = KVCache(cache["keys"], cache["values"])
        self._threads, self._choice = MemberThreads(threads), ThreadChoice(threads)
        self._layers = prompt_layers(weights, geometry, self._threads)
        self._scratch = _scratch_of_members(geometry, threads)
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
        x = process_prompt(self._layers, self._weights, self._geometry, recent, self._cache)

        def part(place: Team) -> None:
            h = self._scratch[place.member].h
            self._layout.decode.next_logits(self._weights, x, self._constants, h, self._logits, place)

        self._threads.run(part, self._choice.threads)
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
        position = self.position

        def part(place: Team) -> None:
            scratch = self._scratch[place.member]
            self._layout.decode.decode_token(
                self._weights, self._cache, token, position, self._constants, scratch, self._logits, place
            )

        begin = time.perf_counter()
        self._threads.run(part, self._choice.threads)
        self._choice.record(time.perf_counter() - begin)
        self._cached.append(token)
        return self._logits

    def close(self) -> None:
        """End the threads; a later token starts them again."""
        self._threads.close()


def _scratch_of_members(geometry: Geometry, members: int) -> list[Any]:
    """Allocate the scratch of each member of a team, with the arrays that they share."""
    layout = layout_of(geometry)
    shapes = layout.decode_scratch_shapes(geometry)
    own = {name: shape for name, shape in shapes.items() if name not in layout.decode_shared}
    first = layout.decode_scratch(**Arena(shapes))
    return [first, *(first._replace(**Arena(own)) for _ in range(members - 1))]


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


def _check_weights(weights: ModelWeights, geometry: Geometry) -> None:
    shapes, matrices = parameter_shapes(geometry), layout_of(geometry).decode_matrices
    for name in {**shapes, **dict.fromkeys(matrices)}:
        tensor = getattr(weights, name)
        shape = shapes.get(name, shapes["wte"])  # a projection that is tied is not among the parameters
        expected = weights.wte.dtype if name in matrices else np.float32
        fits = tensor.dtype == expected and tensor.shape == stored_shape(shape, tensor.dtype)
        if not fits or not tensor.flags.c_contiguous:
            raise GenerationError(
                f"the weights' {name}",
                expected=f"C-contiguous float32 {shape}"
                if expected == np.float32
                else f"the form of {shape} that stored_weights gives",
                got=f"{tensor.dtype} {tensor.shape}",
                hint="pass the geometry of the model that the weights belong to",
            )
