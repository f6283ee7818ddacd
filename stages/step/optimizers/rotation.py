"""The bases of AdamW in rotated coordinates (`optimizer.rotation`): one for each matrix of each layer.

A matrix is rotated on its smaller side, of k elements: G Q if that are its columns, Qᵀ G if its rows, with an
orthogonal Q (k, k). Q approximates the eigenvectors of the covariance of the gradient on that side, as in SOAP (Vyas et
al. 2024, arXiv 2409.11321): those of the first gradient, then one step of orthogonal iteration every few updates with
the covariance of the first moment, which is a moving average of the gradient already.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats, Op, gemm
from threadloom.pipeline import Arena
from threadloom.stages.memory import MatrixRows, balanced, matrix_rows
from threadloom.stages.models import Geometry, Side, basis_shapes, rotated_sides, trained_shapes

_TINY = 1e-300
_Matrix = NDArray[Any]


class Rotation:
    """The bases, and the turn from the previous ones to them.

    The first bases are those of `start`. Later ones, which the first moment decides, are computed by `renew` before the
    update that is due, a share of the matrices per thread, and replace the bases in `accept`. An update that is skipped
    accepts none. Parts of the update only read.
    """

    def __init__(self, geometry: Geometry, frozen: Set[str], interval: int, moment: Arena) -> None:
        """Allocate the bases, renewed every `interval` updates from the first `moment`."""
        self._interval, self._moment = interval, moment
        self.sides: Mapping[str, Side] = rotated_sides(geometry, frozen)
        shapes, trained = basis_shapes(geometry, frozen), trained_shapes(geometry, frozen)
        self._matrices = [m for name in self.sides for m in matrix_rows(name, trained[name], trained[name][-2])]
        self.bases = Arena(shapes)
        self._renewed = Arena(shapes)
        self.turns = Arena(shapes)
        """Qᵀ Q' of the newest renewal: moments m in the basis Q are m Qᵀ Q' in the basis Q'."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated beside the bases."""
        return self._renewed.nbytes + self.turns.nbytes

    def is_due(self, applied: int) -> bool:
        """Return True if the bases are renewed in the update after `applied` others."""
        return applied % self._interval == 0

    def start(self, gradient: Arena) -> None:
        """Compute the bases of the first update."""
        for matrix in self._matrices:
            basis, turn = matrix.matrix(self.bases), matrix.matrix(self.turns)
            covariance = self._covariance(matrix, gradient)
            found = _eigenvectors(covariance) if np.isfinite(covariance).all() else np.eye(len(basis))
            basis[...] = turn[...] = found

    def shares(self, count: int) -> list[list[MatrixRows]]:
        """Return the matrices in `count` shares, whose next bases take a similar time."""
        return balanced(self._matrices, lambda matrix: float(len(matrix.matrix(self.bases)) ** 3), count)

    def renew(self, matrices: Iterable[MatrixRows]) -> None:
        """Compute the next bases of a share of the matrices."""
        for matrix in matrices:
            basis, covariance = matrix.matrix(self.bases), self._covariance(matrix, self._moment)
            found: _Matrix = basis.astype(np.float64)
            if np.isfinite(covariance).all():  # not those of numbers beyond 1e19, in a run that diverges
                found = _orthogonal_iteration(basis, covariance)
            matrix.matrix(self.turns)[...] = basis.T.astype(np.float64) @ found
            matrix.matrix(self._renewed)[...] = found

    def accept(self) -> None:
        """Make the next bases the bases; all shares have been computed."""
        np.copyto(self.bases.flat, self._renewed.flat)

    def _covariance(self, matrix: MatrixRows, arena: Arena) -> Floats:
        """Return the covariance of a matrix in an arena, on the side that is rotated."""
        covariance = np.empty_like(matrix.matrix(self.bases))
        side, other = (Op.T, Op.N) if self.sides[matrix.name] is Side.COLUMNS else (Op.N, Op.T)
        gemm(matrix.of(arena), matrix.of(arena), covariance, side, other, 1.0, 0.0)
        return covariance


def _eigenvectors(covariance: Floats) -> _Matrix:
    """Return the eigenvectors of a covariance, as columns; those of zeros are the unit vectors."""
    found: _Matrix = np.linalg.eigh(covariance.astype(np.float64))[1]
    return found


def _orthogonal_iteration(basis: Floats, covariance: Floats) -> _Matrix:
    """Return one step of orthogonal iteration from a basis; `covariance` is in coordinates of that basis.

    Golub and Van Loan, Matrix Computations, section 8.2.4. The iteration takes the columns by falling variance, the
    order in which it finds eigenvectors, and puts each back in its place: second moments stay those of their columns.
    Columns keep their direction too: R has no negative diagonal.
    """
    order = np.argsort(-np.diag(covariance), kind="stable")
    scale = max(float(np.trace(covariance)), _TINY)
    shifted = covariance.astype(np.float64) / scale + np.eye(len(basis)) * np.finfo(np.float32).eps
    q, r = np.linalg.qr((basis.astype(np.float64) @ shifted)[:, order])
    found = np.empty_like(q)
    found[:, order] = q * np.where(np.diag(r) < 0.0, -1.0, 1.0)
    return found
