"""The bases of AdamW in rotated coordinates (`optimizer.rotation`): one for each matrix of each layer.

A matrix is rotated on its smaller side, of k elements: G Q if that are its columns, Qᵀ G if its rows, with an
orthogonal Q (k, k). Q approximates the eigenvectors of the covariance of the gradient on that side, as in SOAP (Vyas et
al. 2024, arXiv 2409.11321): those of the first gradient, then one step of orthogonal iteration every few updates with
the covariance of the first moment, which is a moving average of the gradient already.
"""

from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats, Op, gemm
from threadloom.pipeline import Arena
from threadloom.stages.models import Geometry, Side, basis_shapes, rotated_sides

_TINY = 1e-300
_Matrix = NDArray[Any]


class Rotation:
    """The bases, and the turn from the previous ones to them.

    `refresh` is called by one thread, before the parts of an update that is due; parts only read.
    """

    def __init__(self, geometry: Geometry, frozen: Set[str], interval: int) -> None:
        """Allocate the bases, renewed every `interval` updates."""
        self._interval = interval
        self.sides: Mapping[str, Side] = rotated_sides(geometry, frozen)
        shapes = basis_shapes(geometry, frozen)
        self.bases = Arena(shapes)
        self.turns = Arena(shapes)
        """Qᵀ Q' of the newest refresh: moments m in the basis Q are m Qᵀ Q' in the basis Q'."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated beside the bases."""
        return self.turns.nbytes

    def is_due(self, applied: int) -> bool:
        """Return True if the bases are renewed in the update after `applied` others."""
        return applied % self._interval == 0

    def refresh(self, applied: int, gradient: Arena, moment: Arena) -> None:
        """Compute the bases of the update after `applied` others from the first moment, or first from the gradient."""
        for name in self.sides:
            for matrix, basis, turn in self._matrices(name, moment if applied else gradient):
                covariance = np.empty_like(basis)
                side, other = (Op.T, Op.N) if self.sides[name] is Side.COLUMNS else (Op.N, Op.T)
                gemm(matrix, matrix, covariance, side, other, 1.0, 0.0)
                if not applied:
                    basis[...] = np.eye(len(basis), dtype=np.float32)
                if not np.isfinite(covariance).all():  # of numbers beyond 1e19, in a run that diverges
                    found: _Matrix = basis.astype(np.float64)
                else:
                    found = _orthogonal_iteration(basis, covariance) if applied else _eigenvectors(covariance)
                turn[...] = basis.T.astype(np.float64) @ found
                basis[...] = found

    def _matrices(self, name: str, arena: Arena) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yield the matrix of each layer in an arena, with its basis and turn."""
        tensors = arena[name], self.bases[name], self.turns[name]
        if tensors[0].ndim == 2:
            yield tensors
        else:
            yield from zip(*tensors, strict=True)


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
