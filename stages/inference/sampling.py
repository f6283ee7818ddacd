"""From logits to a token: temperature, top-k, top-p, and a draw that a seed repeats.

The order is Hugging Face's: the logits are divided by the temperature, all but the k likeliest tokens are left out,
then all but the fewest of those, the likeliest first, whose probabilities add up to p of theirs. Tokens of equal
probability rank by their id, so that exactly k are left, and the choice is a function of its arguments alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import InputError


class SamplingError(InputError):
    """A setting, or logits, from which no token can be drawn."""


@dataclass(frozen=True)
class SamplingSettings:
    """How freely tokens are chosen; the defaults leave the model's probabilities as they are."""

    temperature: float = 1.0
    """At least 0: the likeliest token always. Above 1 the choice is freer, below 1 it is tighter."""
    top_k: int | None = None
    """At least 1: choose among so many; None: among all."""
    top_p: float | None = None
    """In (0, 1]: choose among the fewest that have this probability together; None: among all."""

    def __post_init__(self) -> None:
        """Raise `SamplingError` for a number that means nothing."""
        if not 0.0 <= self.temperature < float("inf"):
            raise _refused("temperature", "a finite number of at least 0", self.temperature)
        if self.top_k is not None and (isinstance(self.top_k, bool) or self.top_k < 1 or self.top_k != int(self.top_k)):
            raise _refused("top_k", "a whole number of at least 1, or none", self.top_k)
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise _refused("top_p", "a number above 0 and at most 1, or none", self.top_p)


def seeded(seed: int) -> np.random.Generator:
    """Return the generator of a seed, which is at least 0; the same on every machine."""
    if seed < 0:
        raise _refused("seed", "a whole number of at least 0", seed)
    return np.random.Generator(np.random.Philox(seed))


def token_probabilities(logits: NDArray[np.floating], settings: SamplingSettings) -> NDArray[np.float64]:
    """Return the probability of each token: logits (V,) of any float type to (V,) float64 that add up to 1.

    Tokens that are left out have 0. Raises `SamplingError` for NaN, +inf, or no logit above -inf.
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
    left = ranked[: settings.top_k]
    if top_p < 1.0:
        left = left[: _nucleus(probabilities[left], top_p)]
    kept = np.zeros_like(probabilities)
    kept[left] = probabilities[left] / probabilities[left].sum()
    return kept


def sample_token(logits: NDArray[np.floating], settings: SamplingSettings, rng: np.random.Generator) -> int:
    """Draw a token id; takes one number from `rng`, or none at temperature 0. Raises as `token_probabilities` does."""
    if settings.temperature == 0.0:
        return int(_checked(logits).argmax())
    cumulative = token_probabilities(logits, settings).cumsum()
    # A draw below the total falls below some cumulative value; never on a token of probability 0, which adds nothing.
    draw = min(rng.random() * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return int(np.searchsorted(cumulative, draw, side="right"))


def _softmax(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, which is what it means
        probabilities: NDArray[np.float64] = np.exp((scores - scores.max()) / temperature)
    probabilities /= probabilities.sum()
    return probabilities


def _nucleus(ranked: NDArray[np.float64], top_p: float) -> int:
    """Return how many of the probabilities, the highest first, it takes to reach `top_p` of their sum."""
    cumulative = ranked.cumsum()
    return int(np.searchsorted(cumulative, top_p * cumulative[-1], side="left")) + 1


def _checked(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logits (V,) as float64."""
    scores = logits.astype(np.float64)
    if scores.ndim != 1 or not scores.size:
        raise _refused("logits", "one row of numbers", f"shape {scores.shape}")
    if not np.isfinite(scores.max()):  # NaN wins over every number
        raise SamplingError(
            "logits",
            expected="numbers, at least one of them finite and none above",
            got=f"a largest one of {scores.max()}",
            cause="the model's weights are damaged, or its training diverged",
            hint="sample from an earlier checkpoint",
        )
    return scores


def _refused(name: str, needed: str, found: object) -> SamplingError:
    cause = "a slip in the command line or the call"
    return SamplingError(name, expected=needed, got=str(found), cause=cause, hint=f"give {name} as {needed}")
