"""Rounding the rows of a matrix to a grid of integers, so that products with given vectors change least.

The error of row w is (w − s z) H (w − s z)ᵀ with the metric H = E[h hᵀ] of the vectors h that the row is multiplied
with: the mean squared change of the product. The nearest z is a closest-vector problem. Rounding each coordinate takes
no notice of H. GPTQ is Babai's nearest plane in the basis of the coordinates (Chen et al., 2025, arXiv 2507.18553);
in a basis reduced by LLL its bound is smaller: error ≤ ¼ s² Σ_i ‖b*_i‖², and the product of the ‖b*_i‖ is fixed. Exact
search of blocks of the reduced basis, from one to the next as Babai's nearest plane, is nearer still.
"""

import math
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.lattice import nearest_in_blocks, nearest_planes
from threadloom.stages.lattice.near_vectors import gram_in_basis, in_basis, planes_of
from threadloom.stages.lattice.reduction import Doubles, Integers, LatticeError, integer_gram, reduce_gram

_LARGEST = 2.0**31
_CHUNK = 4096
"""Rows rounded at a time."""
_BLOCK, _NODES = 16, 20_000
"""Coordinates that are searched at a time, and the most nodes of such a tree: tens of microseconds, some milliseconds.

Larger blocks were 1 or 2 % nearer, and up to a hundred times as slow.
"""
_COUNTED = 1 << 20
"""Range of integers up to which each has a counter; others are sorted."""


class Rounding(Enum):
    """The way to round a row."""

    NEAREST = "rtn"
    GPTQ = "gptq"
    """Babai in the given order of the coordinates, the first one first."""
    SORTED = "gptq-sorted"
    """Babai with the largest diagonal elements of the metric first."""
    LLL = "lll"
    """Babai in a reduced basis."""
    CVP = "cvp"
    """The nearest points in blocks of a reduced basis."""


def rounding_basis(metric: Doubles, rounding: Rounding) -> Integers:
    """Return the basis T (n, n), vectors as rows, whose last vector is rounded first."""
    n = len(metric)
    if rounding is Rounding.GPTQ:
        return np.eye(n, dtype=np.int64)[::-1].copy()
    order = np.argsort(np.diag(metric), kind="stable")
    sorted_basis = np.eye(n, dtype=np.int64)[order]
    if rounding is Rounding.SORTED:
        return sorted_basis
    if rounding in (Rounding.LLL, Rounding.CVP):
        return reduce_gram(integer_gram(metric[np.ix_(order, order)])).transform @ sorted_basis
    return np.eye(n, dtype=np.int64)


class Grid:
    """The integer points in a positive definite metric (n, n), with a basis for one way to round to them."""

    def __init__(self, metric: Doubles, rounding: Rounding) -> None:
        self._metric, self._rounding = metric, rounding
        self._transform = rounding_basis(metric, rounding)
        self._ratios, self._squares = planes_of(gram_in_basis(metric, self._transform))

    def round(self, rows: NDArray[np.float32], step: float) -> Integers:
        """Return integers z (V, n) such that ``step * z`` is near `rows`."""
        _require_step(rows, step)
        if self._rounding is Rounding.NEAREST:
            return np.rint(rows.astype(np.float64) / step).astype(np.int64)
        result = np.empty(rows.shape, np.int64)
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK].astype(np.float64) / step
            points = in_basis(self._metric, self._transform, part)
            result[first : first + _CHUNK] = self._near(points) @ self._transform
        return result

    def _near(self, points: Doubles) -> Integers:
        """Return coordinates of lattice points near `points`, which are overwritten, in the basis."""
        found = np.empty(points.shape, np.int64)
        if self._rounding is Rounding.CVP:
            scratch = np.zeros((_BLOCK + 6, _BLOCK + 1))
            nearest_in_blocks(points, self._ratios, self._squares, _BLOCK, _NODES, found, scratch)
        else:
            nearest_planes(points, self._ratios, found)
        return found


def round_to_grid(rows: NDArray[np.float32], metric: Doubles, step: float, rounding: Rounding) -> Integers:
    """Return integers z (V, n) such that ``step * z`` is near `rows` in a positive definite metric (n, n)."""
    return Grid(metric, rounding).round(rows, step)


def _require_step(rows: NDArray[np.float32], step: float) -> None:
    if not np.isfinite(rows).all() or not step > 0.0 or float(np.abs(rows).max(initial=0.0)) / step > _LARGEST:
        largest = float(np.abs(rows).max(initial=0.0))
        raise LatticeError(
            "the step of a grid",
            expected=f"a positive number of which the largest element is at most {_LARGEST:g} times as large",
            got=f"a step of {step:g} and a largest element of {largest:g}",
        )


def error_bound(metric: Doubles, step: float, rounding: Rounding) -> float:
    """Return the largest error that Babai's nearest plane, or a search of blocks, can make: ¼ s² Σ_i ‖b*_i‖²."""
    _, squares = planes_of(gram_in_basis(metric, rounding_basis(metric, rounding)))
    return 0.25 * step * step * float(squares.sum())


def weighted_error(rows: NDArray[np.float32], rounded: NDArray[np.float32], metric: Doubles) -> float:
    """Return the mean over the rows of the error in a metric."""
    away = rows.astype(np.float64) - rounded
    return float(np.einsum("ij,ij->", away @ metric, away)) / len(rows)


def entropy_bits(integers: NDArray[np.signedinteger]) -> float:
    """Return the entropy of the distribution of the integers, in bits per integer."""
    least = int(integers.min())
    if int(integers.max()) - least < _COUNTED:
        counts = np.bincount(integers.ravel() - least)
        counts = counts[counts > 0]
    else:
        _, counts = np.unique(integers, return_counts=True)
    shares = counts / integers.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def step_of_bits(rows: NDArray[np.float32], bits: float) -> float:
    """Return the step with which rounding to the nearest integers gives an entropy of `bits` per element."""
    deviation = float(np.sqrt(np.mean(np.square(rows, dtype=np.float64))))
    if not deviation > 0.0 or not math.isfinite(deviation):
        raise LatticeError("the rows to round", "finite numbers that are not all 0", f"a mean square of {deviation:g}")
    low, high = deviation * math.exp2(-bits), deviation * math.exp2(4 - bits)  # a normal distribution: 4.13 * 2**-bits
    for _ in range(30):
        step = math.sqrt(low * high)
        if entropy_bits(np.rint(rows / np.float32(step)).astype(np.int32)) > bits:
            low = step
        else:
            high = step
    return high
