"""Matrices of generation as operands of the kernels of training: every result is exact, so bits are compared."""

import numpy as np
import pytest

from tests.kernels.support import Guarded
from threadloom.kernels.float32 import (
    blocks8_from_float32,
    blocks8_shape,
    float32_from_blocks8,
    float32_from_packed,
    packed_from_blocks8,
)
from threadloom.kernels.matmul import Op, pack_float32, packed_shape
from threadloom.kernels.simd import round_to_bf16, upcast_bf16

SIZES = [(1, 1), (2, 31), (31, 32), (33, 65), (64, 32), (77, 41), (100, 97)]


def matrix(inner: int, columns: int) -> np.ndarray:
    return np.random.default_rng(inner).normal(size=(inner, columns)).astype(np.float32)


def in_8_bits(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix in 8 bits, and the matrix (I, O) that it stands for, read by NumPy."""
    inner, columns = weight.shape
    blocks = np.full(blocks8_shape(inner, columns), 99, np.int8)
    blocks8_from_float32(np.ascontiguousarray(weight.T), blocks)
    numbers = blocks[:, :, :1024].reshape(*blocks.shape[:2], 32, 32).astype(np.float32)
    scales = upcast_bf16(np.ascontiguousarray(blocks[:, :, 1024:]).view(np.uint16))
    values = (numbers * scales[:, :, None]).transpose(1, 2, 0, 3).reshape(32 * blocks.shape[1], -1)
    assert not values[inner:].any()
    assert not values[:, columns:].any()
    return blocks, np.ascontiguousarray(values[:inner, :columns])


@pytest.mark.parametrize("sizes", SIZES)
def test_packed_weights_in_float32(sizes: tuple[int, int]) -> None:
    memory, weight = Guarded(), matrix(*sizes)
    packed = np.zeros(packed_shape(*sizes), np.uint32)
    pack_float32(weight, Op.N, packed)
    found = memory.empty(*sizes)
    float32_from_packed(packed, found)
    np.testing.assert_array_equal(found, upcast_bf16(round_to_bf16(weight)))
    memory.check()


@pytest.mark.parametrize("sizes", SIZES)
def test_weights_in_8_bits_in_float32_and_packed(sizes: tuple[int, int]) -> None:
    memory = Guarded()
    blocks, expected = in_8_bits(matrix(*sizes))
    found, scales = memory.empty(*sizes), memory.empty(32)
    float32_from_blocks8(blocks, scales, found)
    np.testing.assert_array_equal(found, expected)
    packed, wanted = (np.full(packed_shape(*sizes), 7, np.uint32) for _ in range(2))
    packed_from_blocks8(blocks, scales, packed)
    pack_float32(expected, Op.N, wanted)
    np.testing.assert_array_equal(packed, wanted)
    memory.check()
