"""From logits to a token: temperature, top-k, top-p, and a reproducible draw.

The order is that of Hugging Face: the logits are divided by the temperature; the k most likely tokens are kept; of
those, the smallest set of most likely tokens whose probability reaches p of their total is kept. Tokens of equal
probability rank by id, so exactly k are kept and the result is a function of the arguments alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import InputError


class SamplingError(InputError):
    """A setting or logits from which no token can be drawn."""


@dataclass(frozen=True)
class SamplingSettings:
    """Randomness of the choice of tokens; the defaults sample from the model's probabilities."""

    temperature: float = 1.0
    """At least 0. 0: always the most likely token. Below 1 favours likely tokens, above 1 unlikely ones."""
    top_k: int | None = None
    """At least 1: number of most likely tokens to choose from. None: all."""
    top_p: float | None = None
    """In (0, 1]: choose from the smallest set of tokens with this total probability. None: all."""

    def __post_init__(self) -> None:
        """Raise `SamplingError` for a value out of range."""
        if not 0.0 <= self.temperature < float("inf"):
            raise _error("temperature", "a finite number of at least 0", self.temperature)
        if self.top_k is not None and (isinstance(self.top_k, bool) or self.top_k < 1 or self.top_k != int(self.top_k)):
            raise _error("top_k", "an integer of at least 1, or none", self.top_k)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise _error("top_p", "a number above 0 and at most 1, or none", self.top_p)


def seeded(seed: int) -> np.random.Generator:
    """Return the random generator of a seed, at least 0; its numbers are the same on every machine."""
    if seed < 0:
        raise _error("seed", "an integer of at least 0", seed)
    return np.random.Generator(np.random.Philox(seed))


def token_probabilities(logits: NDArray[np.floating], settings: SamplingSettings) -> NDArray[np.float64]:
    """Return the probability of each token, (V,) float64 with sum 1, from logits (V,) of any float type.

    Tokens that are not kept have probability 0. Raises `SamplingError` for NaN, +inf, or if all logits are -inf.
    """
    scores = _checked(logits)
    if settings.temperature == 0.0:
        chosen = np.zeros_like(scores)
        chosen[scores.argmax()] = 1.0
        return chosen
    probabilities = _softmax(scores, settings.temperature)
    top_p = 1.0 if settings.top_p is None else settings.top_p
    if settings.top_k is None and top_p == 1.0:
        return probabilities
    ranked = np.argsort(-scores, kind="stable")
    kept = ranked[: settings.top_k]
    if top_p < 1.0:
        kept = kept[: _nucleus(probabilities[kept], top_p)]
    renormalised = np.zeros_like(probabilities)
    renormalised[kept] = probabilities[kept] / probabilities[kept].sum()
    return renormalised


def sample_token(logits: NDArray[np.floating], settings: SamplingSettings, rng: np.random.Generator) -> int:
    """Return a random token id; draws one number from `rng`, or none at temperature 0. Raises `SamplingError`."""
    if settings.temperature == 0.0:
        return int(_checked(logits).argmax())
    cumulative = token_probabilities(logits, settings).cumsum()
    # A draw below the total selects a token of positive probability, since others do not increase the sum.
    draw = min(rng.random() * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(np.searchsorted(cumulative, draw, side="right"))


def _softmax(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a tiny temperature moves all but the largest to -inf, as intended
        probabilities: NDArray[np.float64] = np.exp((scores - scores.max()) / temperature)
    probabilities /= probabilities.sum()
    return probabilities


def _nucleus(ranked: NDArray[np.float64], top_p: float) -> int:
    """Return how many of the probabilities, in descending order, are needed to reach `top_p` of their sum."""
    cumulative = ranked.cumsum()
    return int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1


def _checked(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logits (V,) as float64."""
    scores = logits.astype(np.float64)
    if scores.ndim != 1 or not scores.size:
        raise _error("logits", "a non-empty vector", f"shape {scores.shape}")
    if not np.isfinite(scores.max()):  # the maximum of an array with NaN is NaN
        raise SamplingError(
            "logits",
            expected="a finite maximum",
            got=f"a maximum of {scores.max()}",
            cause="the weights are damaged, or training diverged",
            hint="sample from an earlier checkpoint",
        )
    return scores


def _error(name: str, expected: str, got: object) -> SamplingError:
    return SamplingError(name, expected=expected, got=str(got))
