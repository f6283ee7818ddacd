"""Greatest common divisors against Python's, and the loss made of them against its formula in Python."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from threadloom.kernels.common import IGNORED_TARGET
from threadloom.kernels.common.gcd import gcd_binary, gcd_euclid, gcd_loss, gcd_table

LARGE = 2**62


@given(st.integers(0, LARGE), st.integers(0, LARGE))
def test_euclid(a: int, b: int) -> None:
    assert gcd_euclid(a, b) == math.gcd(a, b)


@given(st.integers(1, LARGE), st.integers(1, LARGE))
def test_binary(a: int, b: int) -> None:
    assert gcd_binary(a, b) == math.gcd(a, b)


@pytest.mark.parametrize("binary", [False, True])
def test_a_table(binary: bool) -> None:
    a, b = np.random.default_rng(1).integers(1, 500, (2, 333))
    out = np.empty(333, np.int64)
    gcd_table(a, b, out, binary)
    assert np.array_equal(out, np.gcd(a, b))


def test_the_loss_of_pairs() -> None:
    random = np.random.default_rng(2)
    numbers, points = random.integers(1, 10**6, 17), random.standard_normal((17, 2))
    ids, targets = random.integers(0, 17, (2, 101)).astype(np.int32)
    targets[[0, 50]] = IGNORED_TARGET
    expected = 0.0
    for a, b in zip(ids[targets >= 0], targets[targets >= 0], strict=True):
        similarity = math.gcd(int(numbers[a]), int(numbers[b])) / int(max(numbers[a], numbers[b]))
        expected -= math.log(0.7 * similarity + 0.3 / (1 + math.dist(points[a], points[b])))
    assert gcd_loss(ids, targets, numbers, points) == pytest.approx(expected, rel=1e-13)  # 101 sums of doubles


def test_with_a_prime_for_each_token_only_equal_tokens_are_similar() -> None:
    primes = np.array([2, 3, 5, 7, 11, 13, 17])
    nowhere = np.zeros((7, 2))
    for a in range(7):
        for b in range(7):
            found = gcd_loss(np.array([a], np.int32), np.array([b], np.int32), primes, nowhere)
            similarity = 1.0 if a == b else 1 / max(primes[a], primes[b])
            assert found == pytest.approx(-math.log(0.7 * similarity + 0.3))
