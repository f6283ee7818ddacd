"""Kissing spheres: every token touches twelve others, and learns from them.

Twelve equal spheres can touch one in the middle. Here the twelve are the tokens that occur before the same tokens in
the training split: the largest cosines of the rows of the matrix of positive pointwise mutual information (PPMI; Levy
and Goldberg, 2014). A token's row is its own share and that of the twelve, ``M = (I + λ N) / (1 + λ)``, so that they
share gradients too.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats
from threadloom.stages.embedding.sparse import SparseEmbedding, SparseMatrix
from threadloom.stages.embedding.vocabulary import VocabularyFacts

if TYPE_CHECKING:
    from scipy import sparse

NEIGHBOURS = 12
"""Number of spheres that touch one in three dimensions."""
_ROWS = 256
"""Rows whose cosines with all others are computed at a time."""


def kissing_embedding(facts: VocabularyFacts, share: float) -> SparseEmbedding:
    """Return the embedding with the weight λ = `share` of the neighbours, who count in proportion to their cosines."""
    rows, columns, cosines = nearest(facts)
    sums = np.bincount(rows, weights=cosines, minlength=facts.size)
    has_any = sums > 0
    own = np.arange(facts.size)
    matrix = SparseMatrix.of(
        (facts.size, facts.size),
        np.concatenate([own, rows]),
        np.concatenate([own, columns]),
        np.concatenate([np.where(has_any, 1 / (1 + share), 1.0), share / (1 + share) * cosines / sums[rows]]),
    )
    return SparseEmbedding(matrix, _start)


def _start(embedding: Floats, factors: Floats, seed: int) -> None:
    factors[...] = embedding


def nearest(facts: VocabularyFacts) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return (row, neighbour, cosine) of up to `NEIGHBOURS` nearest tokens of each row, all cosines above 0."""
    matrix = normalised_ppmi(facts)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for first in range(0, facts.size, _ROWS):
        block = (matrix[first : first + _ROWS] @ matrix.T).toarray()
        block[np.arange(len(block)), first + np.arange(len(block))] = 0.0  # not itself
        order = np.argsort(-block, axis=1, kind="stable")[:, :NEIGHBOURS]
        cosines = np.take_along_axis(block, order, axis=1)
        rows = np.broadcast_to(first + np.arange(len(block))[:, np.newaxis], order.shape)
        kept = cosines > 0
        found.append((rows[kept], order[kept], cosines[kept]))
    rows, columns, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, columns, cosines


def normalised_ppmi(facts: VocabularyFacts) -> "sparse.csr_matrix":
    """Return the PPMI with rows of unit length, but those of zeros."""
    from scipy import sparse

    matrix = ppmi(facts)
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    rows = np.repeat(np.arange(facts.size), np.diff(matrix.indptr))
    return sparse.csr_matrix((matrix.data / lengths[rows], matrix.indices, matrix.indptr), shape=matrix.shape)


def ppmi(facts: VocabularyFacts) -> "sparse.csr_matrix":
    """Return the PPMI (V, V) of a token and the one after it, ``max(ln p(a, b) / (p(a) p(b)), 0)``."""
    from scipy import sparse  # takes a tenth of the start of every run to load

    rows, columns, counts = facts.pairs()
    total = max(counts.sum(), 1)
    before = np.bincount(rows, weights=counts, minlength=facts.size)
    after = np.bincount(columns, weights=counts, minlength=facts.size)
    information = np.maximum(np.log(counts * total / (before[rows] * after[columns])), 0.0)
    kept = information > 0
    return sparse.csr_matrix((information[kept], (rows[kept], columns[kept])), shape=(facts.size, facts.size))
