"""Rounding to 16 bits, compared with NumPy and with the definition of bfloat16."""

import numpy as np
import pytest

from threadloom.stages.storage import StoredFormat
from threadloom.stages.storage.number_formats import bfloat16_bits


def nearest_bfloat16(value: float) -> int:
    """Return the bits of the bfloat16 nearest to a float32 value, ties to even, by trying the two next to it."""
    low = int(np.float32(value).view(np.uint32)) >> 16
    candidates = [low, low + 1]
    as_float = [np.array(bits << 16, np.uint32).view(np.float32) for bits in candidates]
    distances = [abs(float(found) - value) for found in as_float]
    if not np.isfinite(as_float[1]):  # the next number would be 2¹²⁸
        distances[1] = abs(2.0**128 - abs(value))
    if distances[0] == distances[1]:
        return candidates[low & 1]
    return candidates[distances[1] < distances[0]]


def test_bfloat16_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 3000, np.uint32)
    patterns[::3] = patterns[::3] & 0xFFFF0000 | 0x8000  # ties
    values = patterns.view(np.float32)
    values = values[np.isfinite(values)]
    largest = 2.0**128 - 2.0**120  # of bfloat16
    special = np.array([0.0, -0.0, 1.0, largest, 3.4028235e38, 1e-45, np.inf, -np.inf], np.float32)
    for value, bits in zip(values.tolist(), bfloat16_bits(values).tolist(), strict=True):
        assert bits == nearest_bfloat16(value), value
    found = (bfloat16_bits(special).astype(np.uint32) << 16).view(np.float32)
    assert found.tolist() == [0.0, -0.0, 1.0, largest, np.inf, 0.0, np.inf, -np.inf]
    assert np.signbit(found[1])


def test_nan_remains_nan() -> None:
    nans = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0xFF80FFFF], np.uint32).view(np.float32)
    assert np.isnan((bfloat16_bits(nans).astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("stored", StoredFormat)
def test_views_of_any_order_keep_their_shape(stored: StoredFormat) -> None:
    values = np.arange(35, dtype=np.float32).reshape(5, 7).T[1:, ::2]
    found = stored.rounded(values)
    assert found.shape == values.shape
    assert found.dtype.itemsize == stored.itemsize
    if stored is StoredFormat.BF16:
        found = (found.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), values)
