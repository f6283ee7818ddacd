"""The initial factors of an embedding of low rank: random ones, or from the pairs of a text.

Random ones, and principal components: the rows of P_b are the first E_b of one set of orthonormal rows. The rows of A_b
are random, or coordinates of the tokens: the singular vectors of the matrix of positive pointwise mutual information
(PPMI) of neighbours, times the roots of the singular values (Levy and Goldberg, 2014).

LLL: a lattice reduction of an embedding with C dimensions to fewer, as the plans have it, in an order that can work.
The embedding W is that of C principal components in random directions. Small integer combinations of channels with much
variance are short vectors in the metric of the inverse of its covariance; the rows of P_b are the first E_b of the
reduced basis, normalised, and A_b is the one with the least squared error. Eckart and Young's theorem is against it:
principal components keep more.

Each way W has the deviation of a plain run's.
"""

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats
from threadloom.kernels.common import BandFactors, Bands, band_basis, band_rows
from threadloom.stages.config import INITIAL_DEVIATION, EmbeddingBasis
from threadloom.stages.embedding.bands import BandStart
from threadloom.stages.embedding.kissing import ppmi
from threadloom.stages.embedding.vocabulary import VocabularyFacts
from threadloom.stages.lattice import Basis, directions
from threadloom.stages.models import keyed_generator

_ROWS_KEY, _BASES_KEY = 1001, 1002
"""Second halves of the keys of the random generators, which no other tensor has."""
_DENSE = 512
"""Tokens up to which the singular values of the whole matrix are computed."""


def start_of(basis: EmbeddingBasis, facts: VocabularyFacts) -> BandStart:
    """Return the function that writes the initial factors."""
    if basis is EmbeddingBasis.RANDOM:
        return start_randomly

    def start(embedding: Floats, factors: BandFactors, bands: Bands, seed: int) -> None:
        channels = embedding.shape[1]
        if basis is EmbeddingBasis.LLL:
            components = principal_coordinates(facts, channels)
            whole = _product(components, orthonormal_rows(channels, channels, seed))
            write_reduced(whole, facts.frequencies() + 1.0, factors, bands)
        else:
            write_coordinates(principal_coordinates(facts, int(bands.rank.max())), embedding, factors, bands, seed)

    return start


def start_randomly(embedding: Floats, factors: BandFactors, bands: Bands, seed: int) -> None:
    """Write orthonormal rows to the bases and random numbers to the rows; full bands have those of a plain run."""
    channels = embedding.shape[1]
    _write_bases(factors, bands, channels, seed)
    generator = keyed_generator(seed, _ROWS_KEY)
    for b, rank in enumerate(bands.rank.tolist()):
        rows = band_rows(factors, bands, b)
        if rank == channels:
            rows[...] = embedding[bands.first[b] : bands.last[b]]
        else:
            generator.standard_normal(dtype=np.float32, out=rows)
            rows *= np.float32(INITIAL_DEVIATION * sqrt(channels / rank))


def write_coordinates(
    coordinates: NDArray[np.float64], embedding: Floats, factors: BandFactors, bands: Bands, seed: int
) -> None:
    """Write orthonormal rows to the bases, and the first `coordinates` (V, at least E_b) to the rows of A_b.

    A full band has their product with all orthonormal rows. All are scaled alike.
    """
    channels = embedding.shape[1]
    rows_of_bases = _write_bases(factors, bands, channels, seed)
    squares = 0.0
    for b, rank in enumerate(bands.rank.tolist()):
        own = coordinates[bands.first[b] : bands.last[b], :rank]
        squares += float((own**2).sum())
        rows = band_rows(factors, bands, b)
        rows[...] = own if rank < channels else _product(own, rows_of_bases[:rank])
    _scale_rows(factors, squares, embedding.size)


def write_reduced(
    whole: NDArray[np.float64], frequency: NDArray[np.float64], factors: BandFactors, bands: Bands
) -> None:
    """Write the first rows of a reduced basis to the bases, and the nearest rows to `whole` (V, C) to all A_b."""
    channels = whole.shape[1]
    rows_of_bases = directions(whole, frequency, int(bands.rank.max()), Basis.LLL)
    squares = 0.0
    for b, rank in enumerate(bands.rank.tolist()):
        own = whole[bands.first[b] : bands.last[b]]
        if rank < channels:
            wide = rows_of_bases[:rank]
            band_basis(factors, bands, b, channels)[...] = wide
            own = np.linalg.lstsq(wide.T, own.T, rcond=None)[0].T.astype(np.float64)
            squares += float((_product(own, wide) ** 2).sum())
        else:
            squares += float((own**2).sum())
        band_rows(factors, bands, b)[...] = own
    _scale_rows(factors, squares, whole.size)


def _scale_rows(factors: BandFactors, squares: float, size: int) -> None:
    """Multiply the rows of all A_b so that W, whose `size` squares sum to `squares`, has the initial deviation."""
    scale = INITIAL_DEVIATION / sqrt(squares / size) if squares else 1.0
    factors.rows[...] *= np.float32(scale)


def principal_coordinates(facts: VocabularyFacts, rank: int) -> NDArray[np.float64]:
    """Return coordinates of the tokens (V, rank), the most important first; zeros past the rank of the matrix.

    The signs, which are arbitrary, are such that the largest number of each column is positive.
    """
    matrix = ppmi(facts)
    most = min(rank, facts.size)
    if facts.size <= _DENSE or most >= facts.size - 1:
        left, values, _ = np.linalg.svd(matrix.toarray())
        left, values = left[:, :most], values[:most]
    else:
        from scipy.sparse.linalg import svds  # takes a quarter of a second to load

        left, values, _ = svds(matrix, k=most, v0=np.ones(facts.size), tol=1e-4)
        order = np.argsort(-values, kind="stable")
        left, values = left[:, order], values[order]
    largest = np.abs(left).argmax(axis=0)
    left = left * np.where(left[largest, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    found = np.zeros((facts.size, rank))
    found[:, : len(values)] = left * np.sqrt(values)
    return found


def orthonormal_rows(count: int, channels: int, seed: int) -> NDArray[np.float64]:
    """Return random orthonormal rows (count, channels), by Gram and Schmidt's method, applied twice to each row."""
    rows = keyed_generator(seed, _BASES_KEY).standard_normal((count, channels))
    for i, row in enumerate(rows):
        for _ in range(2):
            row -= (rows[:i] * (rows[:i] * row).sum(axis=1, keepdims=True)).sum(axis=0)
        row /= np.sqrt((row**2).sum())
    return rows


def _write_bases(factors: BandFactors, bands: Bands, channels: int, seed: int) -> NDArray[np.float64]:
    """Write the first of one set of orthonormal rows to every basis; return the rows."""
    rows = orthonormal_rows(int(bands.rank.max()), channels, seed)
    for b, rank in enumerate(bands.rank.tolist()):
        if rank < channels:
            band_basis(factors, bands, b, channels)[...] = rows[:rank]
    return rows


def _product(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``a @ b``, in the same order of sums with any number of BLAS threads."""
    out = np.zeros((len(a), b.shape[1]))
    for k in range(a.shape[1]):
        out += a[:, k : k + 1] * b[k]
    return out
