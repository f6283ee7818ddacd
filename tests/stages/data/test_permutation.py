"""The keyed permutation: a permutation of any size, and as random as a drawn one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from threadloom.stages.data.permutation import KeyedPermutation

MASK = 2**64 - 1


def splitmix(z: int) -> int:
    """Return the output of SplitMix64 of Steele et al. 2014 for a state that has been incremented already."""
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def preimage(permutation: KeyedPermutation, image: int) -> int:
    """Undo the rounds of the network from the last to the first, until the result is an element."""
    a, b = permutation.left, permutation.right
    while True:
        left, right = image % a, image // a
        for number in reversed(range(len(permutation.keys))):
            key = permutation.keys[number]
            if number % 2:
                right = (right - splitmix((left + key) & MASK)) % b
            else:
                left = (left - splitmix((right + key) & MASK)) % a
        image = left + a * right
        if image < permutation.size:
            return image


def test_splitmix_reproduces_the_published_vector() -> None:
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the first output for the seed 0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_every_element_is_an_image_once(size: int, seed: int, epoch: int) -> None:
    permutation = KeyedPermutation(size, seed, epoch)
    assert sorted(map(permutation, range(size))) == list(range(size))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 10**6) | st.integers(10**6, 2**62), st.integers(0, 2**63 - 1), st.integers(0, 99), st.data())
def test_every_element_has_one_preimage(size: int, seed: int, epoch: int, data: st.DataObject) -> None:
    permutation = KeyedPermutation(size, seed, epoch)
    assert permutation.left * permutation.right - size < permutation.left  # walks are short
    index = data.draw(st.integers(0, size - 1))
    image = permutation(index)
    assert 0 <= image < size
    assert preimage(permutation, image) == index


def test_other_elements_and_sizes_are_rejected() -> None:
    for index in (-1, 5):
        with pytest.raises(ValueError, match=f"0 to 4, got {index}"):
            KeyedPermutation(5, 1, 2)(index)
    with pytest.raises(ValueError, match="at least one element"):
        KeyedPermutation(0, 1, 2)


@pytest.mark.parametrize("size", [4, 5])
def test_all_orders_are_equally_frequent(size: int) -> None:
    """Pearson's statistic of the size! orders over epochs; its bound is exceeded once in 10,000 by drawn orders.

    By Laurent and Massart (2000, lemma 1), P(chi² >= d + 2 √(d x) + 2 x) <= exp(−x) with d degrees of freedom.
    """
    orders, x = math.factorial(size), math.log(1e4)
    rounds = 25 * orders
    found: dict[tuple[int, ...], int] = {}
    for epoch in range(rounds):
        order = tuple(map(KeyedPermutation(size, 11, epoch), range(size)))
        found[order] = found.get(order, 0) + 1
    statistic = sum((count - 25) ** 2 / 25 for count in found.values()) + 25 * (orders - len(found))
    assert statistic < orders - 1 + 2 * math.sqrt((orders - 1) * x) + 2 * x


def test_neighbours_are_far_apart() -> None:
    """Differences of the images of neighbours are those of random elements: mean distance n / 3, deviation n / √18."""
    size, count = 10_007, 5000
    images = np.array([KeyedPermutation(size, 3, 0)(index) for index in range(count)], float)
    distance = np.abs(np.diff(images)).mean() / size
    assert abs(distance - 1 / 3) < 5 / math.sqrt(18 * count)
