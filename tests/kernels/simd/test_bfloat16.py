"""Conversions between float32 and bfloat16 against the definition: every bfloat16, and float32 of all kinds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.bits16.support import nearest, numbers
from threadloom.kernels.simd.bfloat16 import bf16_from_float32, float32_from_bf16

EVERY = np.arange(1 << 16, dtype=np.uint16)


def convert(values: NDArray[Any]) -> NDArray[Any]:
    source = np.ascontiguousarray(values, np.float32).reshape(-1)
    out = np.full(source.size + 2, 0xABCD, np.uint16)
    bf16_from_float32(source, out[1:-1])
    assert out[0] == out[-1] == 0xABCD
    return out[1:-1].reshape(np.shape(values))


def test_every_bfloat16_is_restored() -> None:
    wide = np.empty(EVERY.size, np.float32)
    float32_from_bf16(EVERY, wide)
    assert (wide.view(np.uint32) == EVERY.astype(np.uint32) << 16).all()
    quiet = np.where(np.isnan(wide), EVERY | 0x40, EVERY)
    assert (convert(wide) == quiet).all()


def test_rounding_is_to_nearest_ties_to_even() -> None:
    rng = np.random.default_rng(0)
    finite = EVERY[(EVERY & 0x7F80) != 0x7F80].astype(np.uint32)
    lows = np.concatenate([[0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], rng.integers(0, 1 << 16, 10)]).astype(np.uint32)
    values = ((finite[:, None] << 16) | lows).view(np.float32)
    values = values[np.abs(values) <= np.float32(3.3895e38)]  # larger numbers are in the next test
    assert (convert(values) == nearest(values)).all()


def test_nan_infinity_and_overflow() -> None:
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x7F80FFFF, 0x7FFFFFFF], np.uint32)
    assert np.isnan(numbers(convert(bits.view(np.float32)))).all()
    assert (convert(np.array([np.inf, -np.inf])) == [0x7F80, 0xFF80]).all()
    largest = np.array([0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF], np.uint32).view(np.float32)
    assert (convert(largest) == [0x7F80, 0x7F80, 0x7F7F]).all()


def test_same_bits_at_every_length() -> None:
    values = np.random.default_rng(1).standard_normal(70).astype(np.float32)
    whole = convert(values)
    for length in range(70):
        assert (convert(values[:length]) == whole[:length]).all()
        assert (convert(values[length:]) == whole[length:]).all()
