"""Text from a model, one token at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import TokenIds, Weights
from threadloom.stages.inference.decoder import Decoder, GenerationError, checked_ids
from threadloom.stages.inference.sampling import SamplingSettings, sample_token, seeded
from threadloom.stages.models import Geometry


def generate(
    weights: Weights,
    geometry: Geometry,
    prompt_ids: Sequence[int] | NDArray[np.integer],
    tokens: int,
    settings: SamplingSettings,
    seed: int,
) -> Iterator[int]:
    """Yield `tokens` token ids that continue the prompt, each as soon as it is drawn.

    The weights must not change until the last id has been yielded. All arguments are checked before this returns:
    raises `GenerationError` or `SamplingError`.
    """
    rng = seeded(seed)
    prompt = checked_ids(prompt_ids, geometry)
    if tokens < 0:
        raise GenerationError("tokens", expected="a number of at least 0", got=str(tokens))
    return _continue(Decoder(weights, geometry), prompt, tokens, settings, rng)


def _continue(
    decoder: Decoder, prompt: TokenIds, tokens: int, settings: SamplingSettings, rng: np.random.Generator
) -> Iterator[int]:
    token = 0
    for number in range(tokens):
        logits = decoder.append(token) if number else decoder.prefill(prompt)
        token = sample_token(logits, settings, rng)
        yield token
