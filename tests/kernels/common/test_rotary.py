"""Rotation of queries and keys by their positions, in every number format, against float64."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import gamma
from tests.kernels.bits16.formats import EVERY_FORMAT, Format
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import within
from tests.kernels.support import random_shapes
from tests.reference import Array
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.rotary import rotary_backward, rotary_forward
from threadloom.kernels.common.tensors import HeadCounts

EACH_FORMAT = pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)


def rotated(x: Array, cos: Array, sin: Array, heads: int, sequences: int) -> tuple[Array, Array]:
    """Return rows of `heads` heads rotated by their positions, and a bound on float32's error of each element.

    An element is the sum of two products: each is rounded, and so is the sum.
    """
    shape = (sequences, -1, heads, x.shape[1] // heads)
    tokens = len(x) // sequences
    cos, sin = cos[:tokens], sin[:tokens]
    expected = reference.rotary_forward(x.reshape(shape), cos, sin)
    half = cos.shape[1]
    low, high = (np.abs(x.reshape(shape))[..., half * i : half * (i + 1)] for i in range(2))
    c, s = np.abs(cos)[:, None], np.abs(sin)[:, None]
    sizes = np.zeros_like(expected)
    sizes[..., : 2 * half] = np.concatenate([low * c + high * s, high * c + low * s], axis=-1)
    return expected.reshape(x.shape), gamma(2) * sizes.reshape(x.shape)


@EACH_FORMAT
@random_shapes
@given(
    sequences=st.integers(1, 3),
    tokens=st.integers(1, 9),
    spare=st.integers(0, 3),
    heads=st.sampled_from([HeadCounts(1, 1), HeadCounts(3, 1), HeadCounts(4, 2)]),
    halves=st.sampled_from([(1, 1), (3, 3), (17, 17), (33, 33), (2, 5), (16, 21)]),
    at_end=st.booleans(),
)
def test_forward_and_backward(
    fmt: Format,
    sequences: int,
    tokens: int,
    spare: int,
    heads: HeadCounts,
    halves: tuple[int, int],
    at_end: bool,
) -> None:
    """`halves` are M / 2 and D / 2. Values and the dimensions after M keep their bits."""
    rng = np.random.default_rng([sequences, tokens, *halves])
    pages = Pages(at_end)
    half, size = halves[0], 2 * halves[1]
    angles = rng.uniform(-7.0, 7.0, (tokens + spare, half))
    cos, sin = pages.copy(np.cos(angles).astype(np.float32)), pages.copy(np.sin(angles).astype(np.float32))
    turned = heads.query + heads.key_value
    before = fmt.random(rng, sequences * tokens, (turned + heads.key_value) * size)
    moved = np.zeros((turned + heads.key_value, size), bool)
    moved[:turned, : 2 * half] = True
    still = ~moved.ravel()
    exact = fmt.numbers(before)[:, : turned * size]
    for kernel, sine in ((rotary_forward, sin), (rotary_backward, -sin)):
        qkv = pages.copy(before)
        kernel(qkv, heads, size, cos, sin, sequences, NO_BORDERS)
        expected, error = rotated(exact, cos.astype(np.float64), sine.astype(np.float64), turned, sequences)
        found = fmt.numbers(qkv)
        assert within(found[:, : turned * size], expected, (1 + fmt.unit) * error + fmt.rounding(expected))
        np.testing.assert_array_equal(qkv[:, still], before[:, still])


@EACH_FORMAT
def test_a_quarter_turn_is_exact(fmt: Format) -> None:
    """Position 1 of the first pair: (x, y) becomes (-y, x). Position 0 is left alone."""
    cos, sin = np.array([[1.0], [0.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
    rows = fmt.nearest(np.tile([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0], (4, 1)))
    rotary_forward(rows, HeadCounts(2, 1), 2, cos, sin, 2, NO_BORDERS)
    expected = [[2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0], [-3.0, 2.0, -7.0, 5.0, -13.0, 11.0, 17.0, 19.0]]
    np.testing.assert_array_equal(fmt.numbers(rows), expected * 2)
    rotary_backward(rows, HeadCounts(2, 1), 2, cos, sin, 2, NO_BORDERS)
    np.testing.assert_array_equal(fmt.numbers(rows), [expected[0]] * 4)
