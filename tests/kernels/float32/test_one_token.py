"""The members' parts of products and attention during generation: together they have the bits of one thread."""

import numpy as np
import pytest

from tests.kernels.support import alone
from tests.kernels.team import together
from threadloom.kernels.common import HeadCounts, make_team
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.kernels.float32 import KVCache, blocks8_from_float32, blocks8_shape
from threadloom.kernels.float32.one_token import Matrix, add_product, attend, write_logits, write_product
from threadloom.kernels.matmul import PANEL, Op, pack_float32, packed_shape

SIZES = [(1, 1), (9, 31), (8, 33), (77, 97), (64, 256), (33, 300), (130, 515)]
MEMBERS = (2, 3, 8)
FORMATS = ("float32", "uint32", "int8")

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="NumPy rounds a part of a product differently")


def stored(weight: np.ndarray, kind: str) -> Matrix:
    """Return a matrix (I, O) in a number format of generation."""
    if kind == "uint32":
        packed = np.zeros(packed_shape(*weight.shape), np.uint32)
        pack_float32(weight, Op.N, packed)
        return packed
    if kind == "int8":
        blocks = np.zeros(blocks8_shape(*weight.shape), np.int8)
        blocks8_from_float32(np.ascontiguousarray(weight.T), blocks)
        return blocks
    return weight


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("sizes", SIZES)
def test_products_in_parts(sizes: tuple[int, int], kind: str) -> None:
    inner, columns = sizes
    x, weight, before = normal(inner, seed=1), stored(normal(inner, columns), kind), normal(columns, seed=2)
    for bias in (normal(columns, seed=3), np.empty(0, np.float32)):
        written, added = np.full(columns, np.nan, np.float32), before.copy()
        write_product(x, weight, bias, written, alone())
        add_product(x, weight, bias, added, alone())
        for members in MEMBERS:
            parts, sums = np.full(columns, np.nan, np.float32), before.copy()
            for place in make_team(members, 0, np.zeros(1, np.int64)):
                write_product(x, weight, bias, parts, place)
                add_product(x, weight, bias, sums, place)
            assert parts.tobytes() == written.tobytes()
            assert sums.tobytes() == added.tobytes()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tokens", [1, 33, 300])
def test_logits_in_parts(tokens: int, kind: str) -> None:
    rows, h = normal(tokens, 77), normal(77, seed=1)
    weight = rows if kind == "float32" else stored(np.ascontiguousarray(rows.T), kind)
    whole, parts = (np.full(tokens, np.nan, np.float32) for _ in range(2))
    write_logits(weight, h, whole, alone())
    for members in MEMBERS:
        parts[:] = np.nan
        for place in make_team(members, 0, np.zeros(1, np.int64)):
            write_logits(weight, h, parts, place)
        assert parts.tobytes() == whole.tobytes()


def test_a_member_writes_whole_panels_alone() -> None:
    """Two members never write to one cache line."""
    out = np.full(5 * PANEL - 3, np.nan, np.float32)
    written = []
    for place in make_team(3, 0, np.zeros(1, np.int64)):
        out[:] = np.nan
        write_product(normal(9), normal(9, len(out)), np.empty(0, np.float32), out, place)
        written.append(np.flatnonzero(~np.isnan(out)))
    assert [(len(part) and part[0], len(part)) for part in written] == [(0, 32), (32, 64), (96, 61)]


@pytest.mark.parametrize("heads", [HeadCounts(5, 5), HeadCounts(9, 3), HeadCounts(4, 1)])
def test_attention_in_parts(heads: HeadCounts) -> None:
    size, context = 7, 21
    shape, width = (2, context, heads.key_value * size), (heads.query + 2 * heads.key_value) * size
    before = KVCache(normal(*shape, seed=1), normal(*shape, seed=2))
    for position in (0, 13, context - 1):
        qkv, results = normal(width, seed=position), list[tuple[bytes, ...]]()
        for members in (1, *MEMBERS):
            cache, out = KVCache(*(array.copy() for array in before)), np.full(heads.query * size, np.nan, np.float32)
            places = make_team(members, 0, np.zeros(1, np.int64))

            def part(member: int) -> None:
                scores = np.full(context, np.nan, np.float32)
                attend(qkv, cache, 1, position, heads, scores, out, places[member])  # noqa: B023 - ends in this turn

            together(members, part)
            results.append((out.tobytes(), cache.keys.tobytes(), cache.values.tobytes()))
            assert cache.keys[1, position].tobytes() == qkv[-2 * shape[2] : -shape[2]].tobytes()
        assert len(set(results)) == 1
