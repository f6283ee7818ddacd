"""Sampling, compared with slow implementations of its definitions."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.error_bounds import FLOAT64, gamma
from threadloom.stages.inference.sampling import (
    SamplingError,
    SamplingSettings,
    sample_token,
    seeded,
    token_probabilities,
)

logit_rows = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12).map(lambda row: np.array(row, np.float32))
temperatures = st.floats(0.05, 4.0)
ROUNDINGS = 2.0 * gamma(2 * int(60 / 0.05) + 40, FLOAT64)
"""Relative difference of two probabilities computed in float64. An exponential's argument is at most 60 / 0.05, off by
two roundings, and so is the exponential, relatively; two sums of 12 terms and a few operations add at most 40. Both
sides are off by that. Numbers below the normal ones are off by at most the smallest of these."""
counts = st.integers(1, 14)


def softmax(logits: np.ndarray, temperature: float) -> list[float]:
    """Return the probabilities by their definition."""
    largest = max(logits.tolist())
    weights = [math.exp((logit - largest) / temperature) for logit in logits.tolist()]
    return [weight / math.fsum(weights) for weight in weights]


def ranked(probabilities: list[float], logits: np.ndarray) -> list[int]:
    """Return the token ids in order of descending logit, equal ones by id."""
    return sorted(range(len(probabilities)), key=lambda token: (-float(logits[token]), token))


def among(probabilities: list[float], kept: list[int]) -> list[float]:
    """Return the renormalised probabilities of the tokens `kept`, 0 for the others."""
    total = math.fsum(probabilities[token] for token in kept)
    return [probability / total if token in kept else 0.0 for token, probability in enumerate(probabilities)]


@given(logit_rows, temperatures)
def test_temperature(logits: np.ndarray, temperature: float) -> None:
    found = token_probabilities(logits, SamplingSettings(temperature=temperature))
    np.testing.assert_allclose(found, softmax(logits, temperature), rtol=ROUNDINGS, atol=sys.float_info.min)


@given(logit_rows)
def test_temperature_zero_selects_the_most_likely(logits: np.ndarray) -> None:
    settings = SamplingSettings(temperature=0.0, top_k=3, top_p=0.5)
    best = ranked([0.0] * len(logits), logits)[0]
    assert sample_token(logits, settings, seeded(0)) == best
    assert token_probabilities(logits, settings).tolist() == [float(token == best) for token in range(len(logits))]


@given(logit_rows, temperatures, counts)
def test_top_k_keeps_exactly_k(logits: np.ndarray, temperature: float, k: int) -> None:
    found = token_probabilities(logits, SamplingSettings(temperature=temperature, top_k=k))
    probabilities = softmax(logits, temperature)
    expected = among(probabilities, ranked(probabilities, logits)[:k])
    np.testing.assert_allclose(found, expected, rtol=ROUNDINGS, atol=sys.float_info.min)


def nucleus_edges(probabilities: list[float], order: list[int], top_p: float) -> set[int]:
    """Return how many tokens reach `top_p` by exact sums: several numbers if rounding may decide."""
    exact = [Fraction(probabilities[token]) for token in order]
    total, running, sizes = sum(exact), Fraction(0), set()
    for margin in (-ROUNDINGS, 0.0, ROUNDINGS):
        running, size = Fraction(0), 0
        while size < len(exact) and running < (Fraction(top_p) + Fraction(margin)) * total:
            running += exact[size]
            size += 1
        sizes.add(max(size, 1))
    return sizes


@given(logit_rows, temperatures, st.one_of(st.none(), counts), st.floats(0.01, 1.0, exclude_max=True))
def test_top_p_keeps_the_fewest_that_reach_p(
    logits: np.ndarray, temperature: float, k: int | None, top_p: float
) -> None:
    found = token_probabilities(logits, SamplingSettings(temperature=temperature, top_k=k, top_p=top_p))
    probabilities = softmax(logits, temperature)
    order = ranked(probabilities, logits)[:k]
    candidates = [among(probabilities, order[:size]) for size in nucleus_edges(probabilities, order, top_p)]
    assert any(np.allclose(found, candidate, rtol=ROUNDINGS, atol=sys.float_info.min) for candidate in candidates)


def test_top_p_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    for top_p, kept in (
        (0.05, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.75, [1, 2, 3]),
        (0.95, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ):
        found = token_probabilities(logits, SamplingSettings(top_p=top_p))
        assert np.flatnonzero(found).tolist() == kept
        assert found.sum() == pytest.approx(1.0, rel=ROUNDINGS)


def test_equal_tokens_rank_by_id() -> None:
    logits = np.zeros(5, np.float32)
    assert np.flatnonzero(token_probabilities(logits, SamplingSettings(top_k=2))).tolist() == [0, 1]
    assert sample_token(logits, SamplingSettings(temperature=0.0), seeded(1)) == 0


def test_draws_follow_the_probabilities() -> None:
    logits = np.array([0.5, -1.0, 2.0, -np.inf, 1.0], np.float32)
    settings = SamplingSettings(temperature=1.3)
    rng, draws = seeded(3), 20_000
    found = np.bincount([sample_token(logits, settings, rng) for _ in range(draws)], minlength=5) / draws
    expected = token_probabilities(logits, settings)
    assert found[3] == 0.0
    np.testing.assert_allclose(found, expected, atol=5 * math.sqrt(0.25 / draws))


@given(logit_rows, st.integers(0, 2**63), st.floats(0.01, 1.0))
def test_the_same_seed_draws_the_same_tokens_and_only_likely_ones(logits: np.ndarray, seed: int, top_p: float) -> None:
    settings = SamplingSettings(temperature=0.8, top_p=top_p)
    first, second = seeded(seed), seeded(seed)
    drawn = [sample_token(logits, settings, first) for _ in range(5)]
    assert drawn == [sample_token(logits, settings, second) for _ in range(5)]
    assert (token_probabilities(logits, settings)[drawn] > 0).all()


def test_the_last_draw_below_one_stays_in_the_vocabulary() -> None:
    class Highest:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    rng = np.random.default_rng(4)
    for _ in range(200):
        logits = np.append(rng.standard_normal(50), -np.inf)  # the last token has probability 0
        assert sample_token(logits, SamplingSettings(), Highest()) < 50  # type: ignore[arg-type]


def test_a_tiny_temperature_is_greedy_without_a_warning() -> None:
    logits = np.array([1.0, 5.0, 4.0], np.float32)
    assert token_probabilities(logits, SamplingSettings(temperature=1e-310)).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_k", -3),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SamplingError, match=f"{name}: expected .* got {value}"):
        SamplingSettings(**{name: value})  # type: ignore[arg-type]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(SamplingError, match="seed: expected an integer of at least 0, got -1"):
        seeded(-1)


@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf], [], [[1.0, 2.0]]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_of_a_damaged_model_are_refused(logits: list[float], temperature: float) -> None:
    with pytest.raises(SamplingError, match="logits: expected"):
        sample_token(np.array(logits, np.float32), SamplingSettings(temperature=temperature), seeded(0))
