"""Variants of Numba's float32 GEMM: against float64, the same bits as each other, and the choice among them."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests.kernels.matmul.test_gemm import Case, check
from tests.kernels.support import gemm_cases, shapes_with_fixtures
from threadloom.kernels.compiling import JIT_ENABLED, Floats, jit_kernel
from threadloom.kernels.matmul import VARIANTS, GemmVariant, ProductKind, gemm_variants
from threadloom.kernels.matmul.backend import GemmBackend, gemm, gemm_backend
from threadloom.kernels.matmul.operands import Op, gemm_args
from threadloom.kernels.matmul.variants import SMALL, WIDE, current_variants, variant_of

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="variants are compiled code")


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.value)
def variant(request: pytest.FixtureRequest) -> Iterator[GemmVariant]:
    with gemm_backend(GemmBackend.NUMBA), gemm_variants(dict.fromkeys(ProductKind, request.param)):
        yield request.param


@shapes_with_fixtures(60)
@given(case=gemm_cases(Case, (70, 90), (40, (250, 530)), beta=st.sampled_from([0.0, 1.0]), strided=st.booleans()))
def test_product_equals_float64(variant: GemmVariant, case: Case) -> None:
    check(case)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("op_a", "op_b"), list(itertools.product(Op, Op)))
@pytest.mark.parametrize(
    ("rows", "columns", "inner"), [(1, 1, 1), (15, 97, 257), (257, 65, 70), (30, 4097, 65), (14, 96, 512)]
)
def test_product_at_the_edges_of_blocks(
    variant: GemmVariant, rows: int, columns: int, inner: int, op_a: Op, op_b: Op, strided: bool
) -> None:
    check(Case(rows, columns, inner, op_a, op_b, beta=1.0, strided=strided))


def _in_every_variant(a: Floats, b: Floats, before: Floats, ops: tuple[Op, Op], scales: tuple[float, float]) -> None:
    expected: Floats | None = None
    for variant in VARIANTS:
        out = before.copy()
        with gemm_backend(GemmBackend.NUMBA), gemm_variants(dict.fromkeys(ProductKind, variant)):
            gemm(a, b, out, *ops, *scales)
        expected = out if expected is None else expected
        np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32), err_msg=variant.value)


@needs_compiler
@pytest.mark.parametrize("scales", [(1.0, 0.0), (1.0, 1.0), (-2.5, 0.5)])
@pytest.mark.parametrize("ops", list(itertools.product(Op, Op)))
@pytest.mark.parametrize(
    ("rows", "columns", "inner"),
    [
        (1, 33, 257),
        (9, 1, 256),
        (13, 4100, 70),
        (16, 96, 65),
        (270, 70, 300),
        (517, 545, 259),
        (127, 65, 129),
        (65, 129, 127),
        (22, 80, 71),
        (23, 15, 271),
        (6, 13, 12),
    ],
)
def test_every_variant_gives_the_same_bits(
    rows: int, columns: int, inner: int, ops: tuple[Op, Op], scales: tuple[float, float]
) -> None:
    """This is why the choice needs no place in a run's configuration."""
    rng = np.random.default_rng([rows, columns, inner])
    a = rng.standard_normal((inner, rows) if ops[0] is Op.T else (rows, inner), np.float32)
    b = rng.standard_normal((columns, inner) if ops[1] is Op.T else (inner, columns), np.float32)
    _in_every_variant(a, b, rng.standard_normal((rows, columns), np.float32), ops, scales)


@needs_compiler
@pytest.mark.parametrize("ops", list(itertools.product(Op, Op)))
def test_an_element_has_the_same_bits_at_an_edge_as_inside(variant: GemmVariant, ops: tuple[Op, Op]) -> None:
    """Every size of a tile is one chain of sums along k: what is beside an element does not change it."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((47, 300), np.float32), rng.standard_normal((300, 130), np.float32)

    def product(rows: int, columns: int) -> Floats:
        left, right = a[:rows], b[:, :columns]
        stored = [np.ascontiguousarray(m.T if op is Op.T else m) for m, op in ((left, ops[0]), (right, ops[1]))]
        out = np.ones((rows, columns), np.float32)
        gemm(stored[0], stored[1], out, *ops, 1.0, 1.0)
        return out

    whole = product(47, 130)
    for rows, columns in itertools.product(
        (1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 21, 33, 46), (1, 8, 9, 17, 48, 65, 75, 96, 97)
    ):
        np.testing.assert_array_equal(product(rows, columns), whole[:rows, :columns], f"{rows} x {columns}")


@jit_kernel
def _variant(a: Floats, b: Floats, out: Floats, op_a: Op, op_b: Op) -> int:
    return variant_of(gemm_args(a, b, out, op_a, op_b, 1.0, 0.0))


@needs_compiler
@pytest.mark.parametrize(
    ("op_a", "op_b", "columns", "kind"),
    [
        (Op.N, Op.N, SMALL + 1, ProductKind.FORWARD),
        (Op.N, Op.T, SMALL + 1, ProductKind.INPUT_GRADIENT),
        (Op.T, Op.N, SMALL + 1, ProductKind.WEIGHT_GRADIENT),
        (Op.N, Op.T, WIDE, ProductKind.VOCABULARY),
        (Op.N, Op.N, WIDE - 1, ProductKind.FORWARD),
    ],
)
def test_each_kind_of_product_reads_its_own_choice(op_a: Op, op_b: Op, columns: int, kind: ProductKind) -> None:
    inner = SMALL + 1
    a = np.zeros((inner, 4) if op_a is Op.T else (4, inner), np.float32)
    b = np.zeros((columns, inner) if op_b is Op.T else (inner, columns), np.float32)
    out = np.zeros((4, columns), np.float32)
    with gemm_variants({kind: GemmVariant.PACKED}):
        assert _variant(a, b, out, op_a, op_b) == list(GemmVariant).index(GemmVariant.PACKED)
    assert _variant(a, b, out, op_a, op_b) == list(GemmVariant).index(current_variants()[kind])


@needs_compiler
@pytest.mark.parametrize(("columns", "inner"), [(SMALL, 1000), (1000, SMALL)])
def test_products_within_attention_stay_in_place(columns: int, inner: int) -> None:
    a, b, out = (np.zeros(shape, np.float32) for shape in ((4, inner), (inner, columns), (4, columns)))
    with gemm_variants(dict.fromkeys(ProductKind, GemmVariant.PACKED)):
        assert _variant(a, b, out, Op.N, Op.N) == list(GemmVariant).index(GemmVariant.IN_PLACE)


def test_the_choice_ends_with_its_block() -> None:
    before = current_variants()
    with pytest.raises(KeyError), gemm_variants({ProductKind.FORWARD: GemmVariant.PACKED}):
        assert current_variants() == {**before, ProductKind.FORWARD: GemmVariant.PACKED}
        raise KeyError
    assert current_variants() == before
