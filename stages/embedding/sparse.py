"""Linear layouts: W = M F with a fixed sparse matrix M (V, P) and trained factors F (P, C).

The gradient of F is ``Mᵀ dW``. A step of gradient descent on F with rate η moves W by ``−η M Mᵀ dW``: M Mᵀ is the
similarity of the tokens, in proportion to which one learns from the gradient of another. AdamW scales the rows of F one
by one, so rows of M with a sum of absolute values of about 1 keep the steps of W as large as those of a plain
embedding.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats
from threadloom.kernels.common import sparse_product

FACTORS = "wte_factors"
"""Name of F among the trained tensors."""

Start = Callable[[Floats, Floats, int], None]
"""Function of (initial W, F, seed) that writes the initial F."""


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A matrix (rows, columns) as the entries of its rows (compressed sparse rows), in ascending columns."""

    columns: int
    starts: NDArray[np.int32]
    """Index of the first entry of each row, and at the end their number (rows + 1)."""
    indices: NDArray[np.int32]
    """Column of each entry."""
    values: Floats

    def __post_init__(self) -> None:
        """Raise ValueError for a matrix that a kernel, which checks no bounds, must not see."""
        starts, indices, count = self.starts, self.indices, len(self.values)
        shapes = starts.ndim == 1 and len(starts) > 0 and indices.shape == (count,)
        if not shapes or starts[0] != 0 or starts[-1] != count or (np.diff(starts) < 0).any():
            raise ValueError(f"the rows of a sparse matrix do not divide its {count} entries")
        if count and not (indices.min() >= 0 and indices.max() < self.columns):
            raise ValueError(f"a column of a sparse matrix is outside 0 to {self.columns - 1}")
        if not np.isfinite(self.values).all():
            raise ValueError("an entry of a sparse matrix is not finite")
        if starts.dtype != np.int32 or indices.dtype != np.int32 or self.values.dtype != np.float32:
            raise ValueError("a sparse matrix has int32 indices and float32 values")

    @classmethod
    def of(
        cls, shape: tuple[int, int], rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float64]
    ) -> "SparseMatrix":
        """Return the matrix with these entries, in any order; entries in the same place are added."""
        entries, where = np.unique(rows * shape[1] + columns, return_inverse=True)
        sums = np.bincount(where, weights=values, minlength=len(entries)).astype(np.float32)
        starts = np.searchsorted(entries, np.arange(shape[0] + 1) * shape[1]).astype(np.int32)
        return cls(shape[1], starts, (entries % shape[1]).astype(np.int32), sums)

    @classmethod
    def identity(cls, size: int) -> "SparseMatrix":
        """Return the identity matrix."""
        places = np.arange(size + 1, dtype=np.int32)
        return cls(size, places, places[:-1].copy(), np.ones(size, np.float32))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    @cached_property
    def transposed(self) -> "SparseMatrix":
        """The transposed matrix, whose rows have their entries in ascending columns too."""
        order = np.argsort(self.indices, kind="stable")
        rows = np.repeat(np.arange(self.rows, dtype=np.int32), np.diff(self.starts))
        starts = np.searchsorted(self.indices[order], np.arange(self.columns + 1)).astype(np.int32)
        return SparseMatrix(self.rows, starts, rows[order], self.values[order])

    @property
    def digest(self) -> str:
        """SHA-256 of the matrix."""
        found = hashlib.sha256(f"{self.rows} {self.columns} ".encode())
        for array in (self.starts, self.indices, self.values):
            found.update(array.tobytes())
        return found.hexdigest()

    def times(self, dense: Floats, out: Floats) -> None:
        """Compute ``out = M dense``; raises ValueError for shapes that do not fit."""
        if dense.shape[0] != self.columns or out.shape != (self.rows, dense.shape[1]):
            raise ValueError(f"({self.rows}, {self.columns}) times {dense.shape} does not give {out.shape}")
        sparse_product(self.starts, self.indices, self.values, dense, out)


class SparseEmbedding:
    """The embedding W = M F. Implements `DerivedEmbedding`."""

    def __init__(self, matrix: SparseMatrix, start: Start) -> None:
        """`start` writes the initial F."""
        self.matrix = matrix
        self._start = start
        self._transposed = matrix.transposed

    @property
    def digest(self) -> str:
        """SHA-256 of M."""
        return self.matrix.digest

    def start(self, embedding: Floats, factors: Mapping[str, Floats], seed: int) -> None:
        """Write the initial F."""
        self._start(embedding, factors[FACTORS], seed)

    def derive(self, factors: Mapping[str, Floats], embedding: Floats) -> None:
        """Compute W = M F."""
        self.matrix.times(factors[FACTORS], embedding)

    def fold(self, d_embedding: Floats, factors: Mapping[str, Floats], gradients: Mapping[str, Floats]) -> None:
        """Compute dF = Mᵀ dW."""
        self._transposed.times(d_embedding, gradients[FACTORS])


def start_with_embedding(embedding: Floats, factors: Floats, seed: int) -> None:
    """Write the random embedding to the first rows of F and zeros to the others: W starts as in a plain run."""
    factors[: len(embedding)] = embedding
    factors[len(embedding) :] = 0.0
