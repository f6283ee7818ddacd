"""The packed transpose of a packed matrix has the bits of packing the transposed matrix."""

import numpy as np
import pytest

from tests.kernels.allocations import allocations
from tests.kernels.bits16.formats import pack
from tests.kernels.bits16.support import Pages, random_bits
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.pack import packed_shape
from threadloom.kernels.matmul.repack import transpose_packed


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize(("inner", "columns"), [(1, 1), (31, 33), (32, 32), (70, 100), (129, 64), (64, 257), (3, 640)])
def test_every_word_equals_packing_the_transpose(inner: int, columns: int, at_end: bool) -> None:
    """Between guard pages, over memory of 0xFF bytes; the packed operands are made by their description."""
    bits, pages = random_bits(np.random.default_rng([inner, columns]), inner, columns), Pages(at_end)
    out = pages.empty(packed_shape(columns, inner), np.uint32)
    transpose_packed(pages.copy(pack(bits)), 0, out)
    assert (out == pack(bits.T)).all()


def test_some_panels() -> None:
    bits, pages = random_bits(np.random.default_rng(0), 150, 40), Pages(True)
    whole, source = pack(bits.T), pages.copy(pack(bits))
    for first in range(5):
        for count in range(6 - first):
            out = pages.empty((count, *whole.shape[1:]), np.uint32)
            transpose_packed(source, first, out)
            assert (out == whole[first : first + count]).all()


def test_a_matrix_without_elements() -> None:
    nothing = np.zeros(packed_shape(0, 0), np.uint32)
    transpose_packed(nothing, 0, nothing)


@pytest.mark.skipif(not JIT_ENABLED, reason="NumPy allocates")
def test_no_allocation() -> None:
    packed, out = np.zeros(packed_shape(40, 70), np.uint32), np.zeros(packed_shape(70, 40), np.uint32)
    assert allocations(transpose_packed, packed, 0, out) == 0
