"""The initial factors of an embedding of low rank."""

from pathlib import Path

import numpy as np
import pytest

from threadloom.kernels.common import BandFactors, band_basis, band_rows, bands_of, factor_sizes
from threadloom.stages.config import EmbeddingBasis
from threadloom.stages.data.token_file import TokenFile
from threadloom.stages.embedding import VocabularyFacts
from threadloom.stages.embedding.bands import BandedEmbedding
from threadloom.stages.embedding.bases import orthonormal_rows, principal_coordinates, start_of

SIZES, CHANNELS = ((50, 48), (250, 20), (300, 12)), 48


def facts(vocabulary: int, tokens: int = 4000) -> VocabularyFacts:
    """Return a text in which a token is mostly followed by one of a few others."""
    rng = np.random.default_rng(4)
    ids = np.zeros(tokens, np.uint16)
    for place in range(1, tokens):
        ids[place] = (ids[place - 1] * 7 + rng.integers(0, 5)) % vocabulary
    return VocabularyFacts(vocabulary, (), TokenFile(ids, vocabulary, 8, Path("train")))


@pytest.mark.parametrize("basis", EmbeddingBasis)
def test_the_embedding_starts_with_the_deviation_of_a_plain_one(basis: EmbeddingBasis) -> None:
    bands, sizes = bands_of(SIZES, CHANNELS), factor_sizes(SIZES, CHANNELS)
    plain = np.random.default_rng(5).standard_normal((600, CHANNELS)).astype(np.float32) * np.float32(0.02)
    found = []
    for _ in range(2):
        factors = BandFactors(*(np.full(size, np.nan, np.float32) for size in sizes))
        start = start_of(basis, facts(600))
        named = {"wte_rows": factors.rows, "wte_bases": factors.bases}
        embedding = BandedEmbedding(SIZES, start)
        embedding.start(plain, named, seed=3)
        whole = np.empty((600, CHANNELS), np.float32)
        embedding.derive(named, whole)
        found.append((factors, whole))
    (factors, whole), (again, _) = found
    np.testing.assert_array_equal(again.rows, factors.rows)
    np.testing.assert_array_equal(again.bases, factors.bases)
    for b in (1, 2):
        basis_rows = band_basis(factors, bands, b, CHANNELS)
        np.testing.assert_allclose(basis_rows @ basis_rows.T, np.eye(len(basis_rows)), atol=1e-6)
    assert abs(whole.std() / 0.02 - 1) < 0.05
    if basis is EmbeddingBasis.RANDOM:
        np.testing.assert_array_equal(band_rows(factors, bands, 0), plain[:50])
        assert abs(whole[50:300].std() / 0.02 - 1) < 0.05
        assert abs(whole[300:].std() / 0.02 - 1) < 0.05


@pytest.mark.parametrize("vocabulary", [40, 600], ids=["dense", "sparse"])
def test_coordinates_are_the_best_of_their_rank(vocabulary: int) -> None:
    text, rank = facts(vocabulary), 10
    found = principal_coordinates(text, rank)
    rows, columns, counts = text.pairs()
    before, after = (np.bincount(side, counts, vocabulary) for side in (rows, columns))
    matrix = np.zeros((vocabulary, vocabulary))
    matrix[rows, columns] = np.maximum(np.log(counts * counts.sum() / (before[rows] * after[columns])), 0)
    left, values, _ = np.linalg.svd(matrix)
    for column in range(rank):
        assert np.linalg.norm(found[:, column]) ** 2 == pytest.approx(values[column], rel=1e-3)
    assert np.abs(found).max(axis=0) == pytest.approx(found.max(axis=0))
    kept = left[:, :rank] @ (left[:, :rank].T @ matrix)
    basis, _ = np.linalg.qr(found)
    lost = np.linalg.norm(matrix - basis @ (basis.T @ matrix)) / np.linalg.norm(matrix - kept)
    assert lost == pytest.approx(1.0, rel=1e-3)


def test_rows_are_orthonormal() -> None:
    rows = orthonormal_rows(40, 40, seed=1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(40), atol=1e-13)


def test_more_coordinates_than_tokens_are_zeros() -> None:
    found = principal_coordinates(facts(7, 50), 9)
    assert found.shape == (7, 9)
    assert not found[:, 7:].any()
