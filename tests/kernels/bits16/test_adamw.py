"""AdamW with the packed forms of the new weights: AdamW's own bits, and the forms that the description gives."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from tests.kernels.bits16.formats import pack
from tests.kernels.bits16.support import Pages, nearest
from tests.kernels.support import random_shapes
from threadloom.kernels.bits16.adamw import (
    BLOCK,
    adamw_forecast_update_packed,
    adamw_lead_update_packed,
    adamw_update_packed,
    pack_rows,
)
from threadloom.kernels.bits16.row_packing import CHUNK
from threadloom.kernels.bits16.tensors import PackedPair
from threadloom.kernels.common.adamw import AdamWStep, adamw_update
from threadloom.kernels.common.adamw_delayed import DelayedAdamWStep, adamw_forecast_update, adamw_lead_update
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.operands import Op
from threadloom.kernels.matmul.pack import PANEL, pack_float32, packed_shape

LARGEST = 150 if JIT_ENABLED else 70
Words = NDArray[np.uint32]


def make_step(decay: float = 0.1) -> AdamWStep:
    """Return the third update of a run, clipped."""
    return AdamWStep(3e-3, 0.9, 0.99, 1e-8, decay, 1.0 - 0.9**3, 1.0 - 0.99**3, 0.3)


def numbers_of_any_size(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Return numbers whose roundings go both ways, among them ties, zeros and subnormal ones."""
    found = (rng.standard_normal((rows, columns)) * 2.0 ** rng.integers(-20, 20, (rows, columns))).astype(np.float32)
    bits = found.view(np.uint32)
    bits[rng.random((rows, columns)) < 0.2] &= np.uint32(0xFFFF0000)
    bits[rng.random((rows, columns)) < 0.5] |= np.uint32(0x8000)
    found[rng.random((rows, columns)) < 0.1] = 0.0
    found[rng.random((rows, columns)) < 0.1] *= np.float32(2.0**-120)
    return found


def packed_pair(weights: Floats) -> PackedPair:
    """Return a matrix and its transpose packed by the slow reference; `pack_float32` must return the same."""
    bits = nearest(weights)
    pair = PackedPair(pack(bits), pack(np.ascontiguousarray(bits.T)))
    for packed, op in zip(pair, Op, strict=True):
        whole = np.full(packed.shape, 0xFFFFFFFF, np.uint32)
        pack_float32(weights, op, whole)
        np.testing.assert_array_equal(whole, packed)
    return pair


def empty_pair(pages: Pages, rows: int, columns: int, fill: int = 0) -> PackedPair:
    """Return memory for both compute copies, cleared as a bank's is, between guard pages."""
    shapes = packed_shape(rows, columns), packed_shape(columns, rows)
    pair = PackedPair(*(pages.empty(shape, np.uint32) for shape in shapes))
    for packed in pair:
        packed[...] = fill
    return pair


def ranges(rows: int, cuts: list[int]) -> list[tuple[int, int]]:
    """Return the ranges between these blocks: each begins at a multiple of a block, and the last ends with the matrix.

    A range that ended within a block would clear the values next to it in the block's panel and pair of rows.
    """
    inside = sorted({BLOCK * cut for cut in cuts if 0 < BLOCK * cut < rows})
    return list(pairwise([0, *inside, rows]))


shapes = given(
    rows=st.integers(1, LARGEST),
    columns=st.integers(1, LARGEST),
    cuts=st.lists(st.integers(1, 4), max_size=4),
    at_end=st.booleans(),
    order=st.randoms(use_true_random=False),
)


@random_shapes
@shapes
def test_rows_packed_in_any_ranges_are_the_whole_matrix_packed(
    rows: int, columns: int, cuts: list[int], at_end: bool, order: Random
) -> None:
    """In any order, and again over what lay there before; what is beyond the matrix stays zero."""
    rng = np.random.default_rng([rows, columns])
    pages = Pages(at_end)
    pair = empty_pair(pages, rows, columns)
    for _ in range(2):
        weights = pages.copy(numbers_of_any_size(rng, rows, columns))
        parts = ranges(rows, cuts)
        order.shuffle(parts)
        for first, last in parts:
            pack_rows(weights[first:last], first, pair)
        for found, expected in zip(pair, packed_pair(weights), strict=True):
            np.testing.assert_array_equal(found, expected)


@random_shapes
@given(rows=st.integers(65, LARGEST), columns=st.integers(1, LARGEST), block=st.integers(0, 4))
def test_a_range_leaves_the_other_blocks_alone(rows: int, columns: int, block: int) -> None:
    """Threads that pack other ranges of the matrix write at the same time: each of them its own words only."""
    rng = np.random.default_rng([rows, columns])
    block = min(block, (rows - 1) // BLOCK)
    first, last = BLOCK * block, min(BLOCK * (block + 1), rows)
    marked = empty_pair(Pages(True), rows, columns, fill=0xABCDEF01)
    weights = numbers_of_any_size(rng, rows, columns)
    pack_rows(weights[first:last], first, marked)
    mark = np.uint32(0xABCDEF01)
    pairs = slice(first // 2, first // 2 + BLOCK // 2)
    written = np.arange(pairs.start, min(pairs.stop, marked.packed.shape[1]))
    assert (np.delete(marked.packed, written, axis=1) == mark).all()
    assert (np.delete(marked.packed_t, block, axis=0) == mark).all()


@pytest.mark.parametrize("in_place", [False, True])
@random_shapes
@given(
    rows=st.integers(1, LARGEST),
    columns=st.integers(1, LARGEST),
    cuts=st.lists(st.integers(1, 4), max_size=3),
    at_end=st.booleans(),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_updates_have_the_bits_of_adamw_and_leave_the_forms_of_the_new_weights(
    in_place: bool, rows: int, columns: int, cuts: list[int], at_end: bool, decay: float
) -> None:
    rng = np.random.default_rng([rows, columns])
    pages = Pages(at_end)
    step = make_step(decay)
    weights, gradient = (rng.standard_normal((rows, columns), np.float32) for _ in range(2))
    m, v = rng.standard_normal((rows, columns), np.float32), rng.random((rows, columns), np.float32)
    old, count = weights.copy(), weights.size
    expected, expected_m, expected_v = np.empty(count, np.float32), m.reshape(-1).copy(), v.reshape(-1).copy()
    adamw_update(old.reshape(-1), expected, gradient.reshape(-1), expected_m, expected_v, count, step)

    weights, gradient, m, v = (pages.copy(array) for array in (weights, gradient, m, v))
    new = weights if in_place else pages.empty(weights.shape, np.float32)
    pair = empty_pair(pages, rows, columns)
    for first, last in ranges(rows, cuts):
        part = slice(first, last)
        adamw_update_packed(weights[part], new[part], gradient[part], m[part], v[part], first, pair, step)
    np.testing.assert_array_equal(new.reshape(-1), expected)
    np.testing.assert_array_equal(m.reshape(-1), expected_m)
    np.testing.assert_array_equal(v.reshape(-1), expected_v)
    assert in_place or np.array_equal(weights, old)
    for found, right in zip(pair, packed_pair(new), strict=True):
        np.testing.assert_array_equal(found, right)


def test_numbers_that_are_not_finite_stay_so() -> None:
    """A weight that diverged must be seen in its forms, not become a number."""
    weights = np.array([[np.nan, 1.0, np.inf], [2.0, -np.inf, 3.0], [0.5, 0.5, np.nan]], np.float32)
    pair = empty_pair(Pages(True), 3, 3)
    pack_rows(weights, 0, pair)
    for words, right in zip(pair, (weights, weights.T), strict=True):
        halves = words[0].view(np.uint16).reshape(-1, 32, 2).transpose(0, 2, 1).reshape(-1, 32)[:3, :3]
        found = (halves.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(("rows", "columns"), [(BLOCK + 1, CHUNK + PANEL + 3), (2 * BLOCK, PANEL), (3, 5)])
@pytest.mark.parametrize("at_end", [False, True])
def test_updates_of_any_form_pack_what_they_write(rows: int, columns: int, at_end: bool) -> None:
    """Rows wider than a chunk, whole squares only, and none; at addresses of whole cache lines, and not."""
    rng = np.random.default_rng([rows, columns])
    pages = Pages(at_end)
    first = rng.standard_normal((5, rows, columns), np.float32)
    first[-1] = np.abs(first[-1])  # the second moment
    delayed = DelayedAdamWStep(
        3e-3, 0.9, 0.99, 1e-8, 0.1, 1.0 - 0.9**3, 1.0 - 0.9**2, 1.0 - 0.99**3, 0.5, 1.5, 2.0, 0.3
    )

    def run(name: str, *, packs: bool) -> tuple[list[Floats], PackedPair]:
        arrays = [pages.copy(array) for array in first]
        flat = [array.reshape(-1) for array in arrays]
        pair, count = empty_pair(pages, rows, columns), rows * columns
        weights, new, gradient, m, v = arrays if packs else flat
        match name, packs:
            case "plain", True:
                adamw_update_packed(weights, new, gradient, m, v, 0, pair, make_step())
            case "plain", False:
                adamw_update(weights, new, gradient, m, v, count, make_step())
            case "lead", True:
                adamw_lead_update_packed(weights, new, gradient, m, v, 0, pair, delayed)
            case "lead", False:
                adamw_lead_update(weights, new, gradient, m, v, count, delayed)
            case _, True:
                adamw_forecast_update_packed(weights, new, gradient, m, v, weights, 0, pair, delayed)
            case _, False:
                adamw_forecast_update(weights, new, gradient, m, v, weights, count, delayed)
        return arrays, pair

    for name in ("plain", "lead", "forecast"):
        (found, pair), (expected, _) = run(name, packs=True), run(name, packs=False)
        for array, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(array, right)
        for words, right_words in zip(pair, packed_pair(found[1]), strict=True):
            np.testing.assert_array_equal(words, right_words)
