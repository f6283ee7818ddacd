"""Text from a model, one token at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats, TokenIds
from threadloom.stages.inference.decode_threads import decode_threads
from threadloom.stages.inference.decoder import Decoder, GenerationError, checked_ids
from threadloom.stages.inference.model import Model
from threadloom.stages.inference.sampling import SamplingSettings, sample_token, seeded
from threadloom.stages.inference.stored_weights import DecodePrecision
from threadloom.stages.inference.text_stream import StopSearch, TextStream
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.models import Geometry


@dataclass(frozen=True)
class GenerationLimits:
    """Where a generated text ends: at the first of its limits."""

    tokens: int
    """Maximum number of tokens."""
    stop: tuple[str, ...] = ()
    """Texts of at least one character: the generated text ends before the first of them."""
    ignore_eos: bool = False
    """True: continue after a token that ends a text."""

    def __post_init__(self) -> None:
        """Raise `GenerationError` for an empty text to stop at."""
        if "" in self.stop:
            raise GenerationError("stop", expected="a text of at least one character", got="an empty one")


def generate(
    weights: ModelWeights,
    geometry: Geometry,
    prompt_ids: Sequence[int] | NDArray[np.integer],
    tokens: int,
    settings: SamplingSettings,
    seed: int,
    excluded: Sequence[int] | NDArray[np.integer] = (),
    threads: int | None = None,
) -> Iterator[int]:
    """Yield `tokens` token ids that continue the prompt, each as soon as it is drawn.

    The ids in `excluded` are never drawn, for example those that the tokenizer has no text for. `weights` are in
    float32, or in another number format (`stored_weights`). They must not change until the last id has been yielded.
    `threads` divide the work of a token, by default as many as are worth it (`decode_threads`); the ids do not depend
    on their number. All arguments are checked before this returns: raises `GenerationError` or `SamplingError`.
    """
    rng = seeded(seed)
    prompt = checked_ids(prompt_ids, geometry)
    if tokens < 0:
        raise GenerationError("tokens", expected="a number of at least 0", got=str(tokens))
    never = np.asarray(excluded, np.intp)

    def draw(logits: Floats) -> int:
        logits[never] = -np.inf
        return sample_token(logits, settings, rng)

    count = decode_threads(weights, geometry) if threads is None else threads
    return _continue(Decoder(weights, geometry, count), prompt, tokens, draw)


def generate_text(
    model: Model,
    prompt_ids: Sequence[int] | NDArray[np.integer],
    settings: SamplingSettings,
    limits: GenerationLimits,
    seed: int,
    precision: DecodePrecision | None = None,
    threads: int | None = None,
) -> Iterator[str]:
    """Yield the text that continues the prompt, in pieces of whole characters, as it is generated.

    `precision` is the number format of the weights; by default the model's, which is float32 unless it was converted
    (`Model.stored_as`, which lets the memory of the float32 weights go). `threads` are as in `generate`. Ids without
    text are never drawn. A token that ends a text is not part of it. Raises as `generate`.
    """
    weights = (model if precision is None else model.stored_as(precision)).weights
    without = model.ids_without_text
    ids = generate(weights, model.geometry, prompt_ids, limits.tokens, settings, seed, without, threads)
    begins = np.array_equal(prompt_ids, model.tokenizer.beginning)
    stream = TextStream(model.tokenizer.decode if begins else model.tokenizer.decode_following)
    return _pieces(model, stream, ids, limits)


def _continue(decoder: Decoder, prompt: TokenIds, tokens: int, draw: Callable[[Floats], int]) -> Iterator[int]:
    token = 0
    try:
        for number in range(tokens):
            logits = decoder.append(token) if number else decoder.prefill(prompt)
            token = draw(logits)
            yield token
    finally:
        decoder.close()


def _pieces(model: Model, stream: TextStream, ids: Iterator[int], limits: GenerationLimits) -> Iterator[str]:
    ends = frozenset[int]() if limits.ignore_eos else model.end_ids
    search = StopSearch(limits.stop)
    for token in ids:
        if token in ends:
            break
        yield search.add(stream.add(token))
        if search.found:
            return
    yield search.add(stream.finish())
    yield search.finish()
