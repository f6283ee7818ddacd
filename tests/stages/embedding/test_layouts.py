"""The layouts of the embedding against dense matrices, Python's integers and formulas written out again."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from threadloom.stages.config import ConfigError, EmbeddingConfig, EmbeddingLayout
from threadloom.stages.data import DigitTable
from threadloom.stages.embedding import SparseEmbedding, SparseMatrix, VocabularyFacts, derived_embedding
from threadloom.stages.embedding.kissing import nearest
from threadloom.stages.embedding.primes import first_primes, token_numbers
from threadloom.stages.models import Geometry

TEXTS = ("the", "he", "t", "12", " 7", "", "ß", "then", "123", "x", "999999999999999999", "-5", "0")
FACTS = VocabularyFacts(len(TEXTS), TEXTS)
UNIT = 2.0**-24
"""Unit roundoff of float32."""
TINY = 2.0**-126
"""The smallest normal float32; kernels round smaller numbers to 0."""


def dense(matrix: SparseMatrix) -> NDArray[np.float64]:
    out = np.zeros((matrix.rows, matrix.columns))
    for row in range(matrix.rows):
        for k in range(matrix.starts[row], matrix.starts[row + 1]):
            assert out[row, matrix.indices[k]] == 0, "an entry occurs twice"
            out[row, matrix.indices[k]] = matrix.values[k]
    return out


def layout(facts: VocabularyFacts, kind: EmbeddingLayout, **settings: object) -> SparseEmbedding:
    found = derived_embedding(EmbeddingConfig(layout=kind, **settings), facts)  # type: ignore[arg-type]
    assert isinstance(found, SparseEmbedding)
    return found


entries = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 4), st.floats(-2, 2, width=32, allow_subnormal=False)), max_size=25
)


@given(entries, st.integers(0, 2**31))
def test_a_sparse_product_and_its_transpose(found: list[tuple[int, int, float]], seed: int) -> None:
    rows, columns, values = (np.array([entry[i] for entry in found]) for i in range(3))
    matrix = SparseMatrix.of((7, 5), rows.astype(np.int64), columns.astype(np.int64), values.astype(np.float64))
    expected = np.zeros((7, 5))
    np.add.at(expected, (rows.astype(int), columns.astype(int)), values)
    np.testing.assert_allclose(dense(matrix), expected, rtol=2 * UNIT, atol=25 * 2 * 2.0**-52)  # 25 sums in float64
    np.testing.assert_array_equal(dense(matrix.transposed), dense(matrix).T)
    source = np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32)
    out = np.full((7, 3), np.nan, np.float32)
    matrix.times(source, out)
    exact, size = dense(matrix) @ source, np.abs(dense(matrix)) @ np.abs(source)
    assert (np.abs(out - exact) <= 6 * UNIT * size + 9 * TINY).all()  # 5 products and 4 sums of float32


@pytest.mark.parametrize(
    ("starts", "indices", "values"),
    [
        ([0, 1], [1], [1.0]),
        ([0, 1], [-1], [1.0]),
        ([0, 2], [0], [1.0]),
        ([1, 1], [0], [1.0]),
        ([0, 2, 1], [0], [1.0]),
        ([0, 1], [0], [math.nan]),
        ([0, 1], [0, 0], [1.0]),
        ([], [], []),
    ],
)
def test_a_kernel_never_sees_a_wrong_matrix(starts: list[int], indices: list[int], values: list[float]) -> None:
    arrays = np.array(starts, np.int32), np.array(indices, np.int32), np.array(values, np.float32)
    with pytest.raises(ValueError, match="sparse matrix"):
        SparseMatrix(1, *arrays)
    with pytest.raises(ValueError, match="does not give"):
        SparseMatrix.identity(3).times(np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32))


def test_identity_changes_nothing() -> None:
    np.testing.assert_array_equal(dense(layout(FACTS, EmbeddingLayout.IDENTITY).matrix), np.eye(len(TEXTS)))


def test_prime_factors_are_the_bytes_of_a_token() -> None:
    matrix = dense(layout(FACTS, EmbeddingLayout.PRIMES).matrix)
    np.testing.assert_array_equal(matrix[:, : len(TEXTS)], np.eye(len(TEXTS)))
    for row, text in enumerate(TEXTS):
        content = text.encode()
        for byte in range(256):
            share = content.count(byte) / len(content) if content else 0.0
            assert matrix[row, len(TEXTS) + byte] == pytest.approx(share, rel=UNIT, abs=0)


def test_tokens_are_products_of_primes() -> None:
    numbers = token_numbers(FACTS)
    primes = first_primes(256).tolist()
    assert primes[:5] == [2, 3, 5, 7, 11]
    assert all(all(prime % other for other in range(2, math.isqrt(prime) + 1)) for prime in primes)
    for text, number in zip(TEXTS, numbers, strict=True):
        factors = []
        for prime in primes:  # trial division
            while number % prime == 0:
                factors.append(prime)
                number //= prime
        assert number == 1
        assert len(factors) == len(text.encode())
        assert len(set(factors)) == len(set(text.encode()))
    for a, first in zip(TEXTS, numbers, strict=True):
        for b, second in zip(TEXTS, numbers, strict=True):
            shared = sum(min(a.encode().count(byte), b.encode().count(byte)) for byte in range(256))
            divisor, found = math.gcd(first, second), 0
            for prime in primes:
                while divisor % prime == 0:
                    divisor, found = divisor // prime, found + 1
            assert found == shared, (a, b)
    contents = [text.encode() for text in TEXTS]
    most = max(range(256), key=lambda byte: sum(content.count(byte) for content in contents))
    assert [number % 2 == 0 for number in numbers] == [most in content for content in contents], "frequent: small prime"


def test_only_numbers_have_clock_features() -> None:
    periods = (10, 7)
    matrix = dense(layout(FACTS, EmbeddingLayout.CLOCK, periods=periods).matrix)
    np.testing.assert_array_equal(matrix[:, : len(TEXTS)], np.eye(len(TEXTS)))
    for row, text in enumerate(TEXTS):
        number = {"12": 12, " 7": 7, "123": 123, "0": 0}.get(text)
        for index, period in enumerate(periods):
            angle = 2 * math.pi * (number or 0) / period
            hands = matrix[row, len(TEXTS) + 2 * index : len(TEXTS) + 2 * index + 2]
            expected = [0.0, 0.0] if number is None else [math.cos(angle), math.sin(angle)]
            np.testing.assert_allclose(hands, np.array(expected) / (math.sqrt(2) * 2), rtol=1e-6, atol=1e-7)
        assert np.abs(matrix[row, len(TEXTS) :]).sum() <= 1 + 1e-6


@pytest.mark.parametrize("ordered", [False, True])
def test_digits_at_places_are_sums_of_two_rows(ordered: bool) -> None:
    table = DigitTable.of([0, 1, 2, 3, 4, -1, 6, 7, 8, 9], 13, 3)
    size = 13 + 30 + 2  # two rows without tokens
    ids = np.random.default_rng(1).permutation(size).astype(np.int32) if ordered else None
    found = layout(VocabularyFacts(size, table=table, ids=ids), EmbeddingLayout.ABACUS)
    matrix, half = dense(found.matrix), np.float32(math.sqrt(0.5))
    for row in range(size):
        token = row if ids is None else int(ids[row])
        expected = np.zeros(matrix.shape[1])
        if 13 <= token < 43:
            expected[size + (token - 13) % 10] = expected[size + 10 + (token - 13) // 10] = half
        else:
            expected[row] = 1
        np.testing.assert_array_equal(matrix[row], expected)


@given(st.integers(0, 20), st.sampled_from([(7, 9), (4, 5, 3), (61,), (2, 31)]))
def test_residues_tell_tokens_apart(own: int, moduli: tuple[int, ...]) -> None:
    facts = VocabularyFacts(60)
    found = layout(facts, EmbeddingLayout.RESIDUES, moduli=moduli, own_rows=own)
    matrix = dense(found.matrix)
    assert len({tuple(row) for row in matrix}) == 60
    for token in range(60):
        columns = [token]
        if token >= own:
            firsts = own + np.cumsum([0, *moduli[:-1]])
            columns = [first + (token - own) % modulus for first, modulus in zip(firsts, moduli, strict=True)]
        np.testing.assert_array_equal(np.flatnonzero(matrix[token]), columns)
    embedding, factors = np.random.default_rng(0).standard_normal((2, 200, 400)).astype(np.float32)
    factors, embedding = factors[: found.matrix.columns], embedding[:60]
    found.start(embedding, {"wte_factors": factors}, 3)
    np.testing.assert_array_equal(factors[:own], embedding[:own])
    rest = factors[own:]
    assert rest.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * rest.size))  # five standard errors


def test_neighbours_are_those_that_precede_the_same_tokens() -> None:
    random = np.random.default_rng(5)
    size, count = 20, 4000
    tokens = (random.zipf(1.5, count) % size).astype(np.int64)

    class Tokens:
        ids = tokens

        def __len__(self) -> int:
            return count

    facts = VocabularyFacts(size, tokens=Tokens())  # type: ignore[arg-type]
    counts = np.zeros((size, size))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = counts * counts.sum() / np.outer(counts.sum(1), counts.sum(0))
        ppmi = np.where(counts > 0, np.maximum(np.log(ratio), 0), 0)
        unit = np.nan_to_num(ppmi / np.linalg.norm(ppmi, axis=1, keepdims=True))
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    rows, columns, values = nearest(facts)
    np.testing.assert_allclose(values, cosines[rows, columns], rtol=1e-10)
    for row in range(size):
        kept = np.sort(values[rows == row])[::-1]
        best = np.sort(cosines[row])[::-1][:12]
        np.testing.assert_allclose(kept, best[best > 0], rtol=1e-10)
    matrix = dense(layout(facts, EmbeddingLayout.KISSING, share=0.5).matrix)
    np.testing.assert_allclose(matrix.sum(1), 1.0, rtol=1e-5)
    chosen = rows == 3
    expected = np.zeros(size)
    expected[columns[chosen]] = values[chosen] / values[chosen].sum() / 3  # λ / (1 + λ) = 1/3
    expected[3] = 2 / 3
    np.testing.assert_allclose(matrix[3], expected, rtol=1e-5)


def test_pairs_are_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadloom.stages.embedding.vocabulary.BLOCK", 3)

    class Tokens:
        ids = np.array([0, 1, 0, 1, 2, 2, 9, 0, 1, 0], np.uint16)

        def __len__(self) -> int:
            return 10

    rows, columns, counts = VocabularyFacts(3, tokens=Tokens()).pairs()  # type: ignore[arg-type]
    found = dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), counts.tolist(), strict=True))
    assert found == {(0, 1): 3, (1, 0): 2, (1, 2): 1, (2, 2): 1}, "the 9 is outside of the vocabulary"


@pytest.mark.parametrize("moduli", [(), (6, 9), (2, 3), (0, 100), (-7, 9)])
def test_moduli_that_do_not_tell_tokens_apart_are_refused(moduli: tuple[int, ...]) -> None:
    config = EmbeddingConfig(layout=EmbeddingLayout.RESIDUES, moduli=moduli)
    with pytest.raises(ConfigError, match="moduli"):
        config.factors(Geometry(50, 4, 1, 1, 8))
