"""A vector times a packed matrix, against float64 with the rounded weights, at sizes off and on the panels."""

import numpy as np
import pytest

from tests.error_bounds import gamma
from tests.kernels.support import Guarded, alone, run_without_compiler
from threadloom.kernels.float32.one_token import write_logits
from threadloom.kernels.float32.packed_vector import add_packed, copy_packed_column
from threadloom.kernels.matmul import Op, PackedBits, pack_float32, packed_shape
from threadloom.kernels.simd import round_to_bf16, upcast_bf16

SIZES = [(1, 1), (1, 33), (2, 31), (3, 32), (31, 64), (32, 95), (33, 96), (64, 5), (77, 41), (130, 100)]


def packed(weight: np.ndarray) -> PackedBits:
    out = np.zeros(packed_shape(*weight.shape), np.uint32)
    pack_float32(weight, Op.N, out)
    return out


def matrix(inner: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(inner, columns)) * 10.0 ** rng.integers(-3, 4, (inner, columns))).astype(np.float32)


@pytest.mark.parametrize("sizes", SIZES)
def test_products_with_rounded_weights(sizes: tuple[int, int]) -> None:
    inner, columns = sizes
    memory, weight = Guarded(), matrix(inner, columns)
    x = memory.copy(np.random.default_rng(1).normal(size=inner))
    before = memory.copy(np.random.default_rng(2).normal(size=columns))
    exact, factors = upcast_bf16(round_to_bf16(weight)).astype(np.float64), x.astype(np.float64)
    product, size = factors @ exact, np.abs(factors) @ np.abs(exact)
    written = memory.empty(columns)
    write_logits(packed(weight), x, written, alone())
    assert (np.abs(written - product) <= gamma(inner + 1) * size).all()
    added = memory.copy(before)
    add_packed(x, packed(weight), added)
    assert (np.abs(added - (before.astype(np.float64) + product)) <= gamma(inner + 1) * (size + np.abs(before))).all()
    memory.check()


@pytest.mark.parametrize("sizes", SIZES)
def test_a_column_is_that_of_the_rounded_weights(sizes: tuple[int, int]) -> None:
    inner, columns = sizes
    memory, weight = Guarded(), matrix(inner, columns)
    expected = upcast_bf16(round_to_bf16(weight))
    for column in {0, columns // 2, columns - 1}:
        found = memory.empty(inner)
        copy_packed_column(packed(weight), column, found)
        np.testing.assert_array_equal(found, expected[:, column])
    memory.check()


def test_a_result_does_not_depend_on_the_other_columns() -> None:
    x, weight = matrix(70, 1, 3)[:, 0], matrix(70, 96)
    whole, part = np.empty(96, np.float32), np.empty(32, np.float32)
    write_logits(packed(weight), x, whole, alone())
    write_logits(packed(np.ascontiguousarray(weight[:, 32:64])), x, part, alone())
    np.testing.assert_array_equal(whole[32:64], part)


def test_the_kernels_run_without_the_compiler() -> None:
    run_without_compiler(
        "import numpy as np\n"
        "from tests.kernels.float32 import test_packed_vector as tests\n"
        "for sizes in tests.SIZES:\n"
        "    tests.test_products_with_rounded_weights(sizes)\n"
        "    tests.test_a_column_is_that_of_the_rounded_weights(sizes)\n"
    )
