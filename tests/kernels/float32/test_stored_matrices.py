"""Matrices of generation as operands of the kernels of training: every result is exact, so bits are compared."""

import numpy as np
import pytest

from tests.kernels.support import Guarded
from threadloom.kernels.float32 import (
    blocks8_from_float32,
    float32_from_packed,
    float32_from_rows8,
    packed_from_rows8,
    row_bytes,
)
from threadloom.kernels.matmul import Op, pack_float32, packed_shape
from threadloom.kernels.simd import round_to_bf16, upcast_bf16

SIZES = [(1, 1), (2, 31), (31, 32), (33, 65), (64, 32), (77, 41), (100, 97)]


def matrix(inner: int, columns: int) -> np.ndarray:
    return np.random.default_rng(inner).normal(size=(inner, columns)).astype(np.float32)


def rows8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of a matrix in 8 bits, and the matrix (I, O) that they stand for, block by block."""
    inner, columns = weight.shape
    rows = np.zeros((columns, row_bytes(inner)), np.int8)
    blocks8_from_float32(np.ascontiguousarray(weight.T), rows)
    blocks = rows.reshape(columns, -1, 34)
    scales = np.ascontiguousarray(blocks[:, :, 32:]).view(np.uint16)[:, :, 0]
    values = upcast_bf16(scales)[:, :, None] * blocks[:, :, :32].astype(np.float32)
    return rows, np.ascontiguousarray(values.reshape(columns, -1)[:, :inner].T)


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
    rows, expected = rows8(matrix(*sizes))
    found, scratch = memory.empty(*sizes), memory.empty(32, sizes[0])
    float32_from_rows8(rows, scratch, found)
    np.testing.assert_array_equal(found, expected)
    packed, wanted = (np.full(packed_shape(*sizes), 7, np.uint32) for _ in range(2))
    packed_from_rows8(rows, scratch, packed)
    pack_float32(expected, Op.N, wanted)
    np.testing.assert_array_equal(packed, wanted)
    memory.check()
