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
        if basis is EmbeddingBasis.LLL:
            continue
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


def test_a_reduced_basis_has_combinations_of_channels_with_much_variance() -> None:
    """Integers in each row, and least squares: no other A has a smaller error, and random directions keep less."""
    text, bands, sizes = facts(600), bands_of(SIZES, CHANNELS), factor_sizes(SIZES, CHANNELS)
    factors = BandFactors(*(np.zeros(size, np.float32) for size in sizes))
    start_of(EmbeddingBasis.LLL, text)(np.zeros((600, CHANNELS), np.float32), factors, bands, 3)
    scale = None
    for b, (tokens, rank) in enumerate(SIZES):
        whole = principal_coordinates(text, CHANNELS) @ orthonormal_rows(CHANNELS, CHANNELS, seed=3)
        whole = whole[bands.first[b] : bands.last[b]]
        rows = band_rows(factors, bands, b).astype(np.float64)
        if rank == CHANNELS:
            scale = rows.std() / whole.std()
            np.testing.assert_allclose(rows, whole * scale, atol=1e-6)
            continue
        wide = band_basis(factors, bands, b, CHANNELS).astype(np.float64)
        assert np.linalg.matrix_rank(wide) == rank
        np.testing.assert_allclose(np.linalg.norm(wide, axis=1), 1.0, atol=1e-6)
        for row in wide:
            units = row / np.abs(row[row != 0]).min()
            assert min(np.abs(k * units - np.rint(k * units)).max() for k in range(1, 7)) < 1e-4
        directions, _ = np.linalg.qr(wide.T)
        np.testing.assert_allclose(rows @ wide, whole @ directions @ directions.T * scale, atol=1e-6)
        random = orthonormal_rows(rank, CHANNELS, seed=8)
        assert np.linalg.norm(whole @ directions) > np.linalg.norm(whole @ random.T)
        assert len(rows) == tokens


def test_rows_are_orthonormal() -> None:
    rows = orthonormal_rows(40, 40, seed=1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(40), atol=1e-13)


def test_more_coordinates_than_tokens_are_zeros() -> None:
    found = principal_coordinates(facts(7, 50), 9)
    assert found.shape == (7, 9)
    assert not found[:, 7:].any()
