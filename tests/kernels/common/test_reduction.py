"""Sum of lanes and of the squares for the norm, in chunks."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.error_bounds import gamma
from tests.kernels.support import Guarded, float32_numbers, random_shapes
from threadloom.kernels.common.reduction import CHUNK, sum_lanes

SIZES = [1, 4095, 4097, CHUNK, CHUNK + 1, 2 * CHUNK + 12345]


def chunks_of(size: int) -> int:
    return -(-size // CHUNK)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("size", SIZES)
def test_sums_in_the_order_of_the_lanes(size: int, count: int, in_place: bool) -> None:
    rng = np.random.default_rng([size, count])
    memory = Guarded()
    lanes = memory.copy(float32_numbers(rng, count, size))
    before = lanes.copy()
    expected = before[0].copy()
    for lane in before[1:]:
        expected += lane  # float32, in this order: the bits are determined
    out = lanes[0] if in_place else memory.empty(size)
    partials = np.full(chunks_of(size) + 2, np.nan)
    sum_lanes(lanes, out, partials[1:-1], 0, chunks_of(size))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lanes[1 if in_place else 0 :], before[1 if in_place else 0 :])
    squares = expected.astype(np.float64) ** 2
    of_chunks = [squares[i : i + CHUNK].sum() for i in range(0, size, CHUNK)]
    # Squares of float32 are exact in float64; their sums, ours and NumPy's, are of positive terms.
    np.testing.assert_allclose(partials[1:-1], of_chunks, rtol=2 * gamma(CHUNK, 2.0**-53))
    assert np.isnan(partials[[0, -1]]).all()
    memory.check()


@random_shapes
@given(order=st.permutations(range(5)), shift=st.integers(0, 15), in_place=st.booleans())
def test_same_bits_in_any_order_of_chunks(order: list[int], shift: int, in_place: bool) -> None:
    """In one call or chunk by chunk in any order, in place or not, at any alignment."""
    rng = np.random.default_rng(1)
    size = 4 * CHUNK + 777
    values = rng.standard_normal((3, size), np.float32)
    whole, whole_partials = np.empty(size, np.float32), np.empty(5)
    sum_lanes(values, whole, whole_partials, 0, 5)

    buffer = np.zeros(3 * size + shift, np.float32)
    lanes = buffer[shift:].reshape(3, size)
    lanes[...] = values
    out, partials = lanes[0] if in_place else np.full(size, np.nan, np.float32), np.full(5, np.nan)
    for chunk in order:
        sum_lanes(lanes, out, partials, chunk, chunk + 1)
    np.testing.assert_array_equal(out, whole)
    np.testing.assert_array_equal(partials, whole_partials)


def test_only_the_requested_chunks_are_written() -> None:
    lanes = np.ones((2, 3 * CHUNK), np.float32)
    out, partials = np.full(3 * CHUNK, np.nan, np.float32), np.full(3, np.nan)
    sum_lanes(lanes, out, partials, 1, 2)
    assert (out[CHUNK : 2 * CHUNK] == 2.0).all()
    assert np.isnan(out[:CHUNK]).all()
    assert np.isnan(out[2 * CHUNK :]).all()
    assert partials[1] == 4.0 * CHUNK
    assert np.isnan(partials[[0, 2]]).all()
