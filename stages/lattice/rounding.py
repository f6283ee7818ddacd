"""Rounding the rows of a matrix to a grid of integers, so that products with given vectors change least.

The error of row w is (w − s z) H (w − s z)ᵀ with the metric H = E[h hᵀ] of the vectors h that the row is multiplied
with: the mean squared change of the product. The nearest z is a closest-vector problem. Rounding each coordinate takes
no notice of H. GPTQ is Babai's nearest plane in the basis of the coordinates (Chen et al., 2025, arXiv 2507.18553);
in a basis reduced by LLL its bound is smaller: error ≤ ¼ s² Σ_i ‖b*_i‖², and the product of the ‖b*_i‖ is fixed.
"""

import math
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.lattice import nearest_planes
from threadloom.stages.lattice.near_vectors import gram_in_basis, in_basis, planes_of
from threadloom.stages.lattice.reduction import Doubles, Integers, LatticeError, integer_gram, reduce_gram

_LARGEST = 2.0**31
_CHUNK = 4096
"""Rows rounded at a time."""
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


def rounding_basis(metric: Doubles, rounding: Rounding) -> Integers:
    """Return the basis T (n, n), vectors as rows, whose last vector is rounded first."""
    n = len(metric)
    if rounding is Rounding.GPTQ:
        return np.eye(n, dtype=np.int64)[::-1].copy()
    order = np.argsort(np.diag(metric), kind="stable")
    sorted_basis = np.eye(n, dtype=np.int64)[order]
    if rounding is Rounding.SORTED:
        return sorted_basis
    if rounding is Rounding.LLL:
        return reduce_gram(integer_gram(metric[np.ix_(order, order)])).transform @ sorted_basis
    return np.eye(n, dtype=np.int64)


def round_to_grid(rows: NDArray[np.float32], metric: Doubles, step: float, rounding: Rounding) -> Integers:
    """Return integers z (V, n) such that ``step * z`` is near `rows` in a positive definite metric (n, n)."""
    if not np.isfinite(rows).all() or not step > 0.0 or float(np.abs(rows).max(initial=0.0)) / step > _LARGEST:
        largest = float(np.abs(rows).max(initial=0.0))
        raise LatticeError(
            "the step of a grid",
            expected=f"a positive number of which the largest element is at most {_LARGEST:g} times as large",
            got=f"a step of {step:g} and a largest element of {largest:g}",
        )
    if rounding is Rounding.NEAREST:
        return np.rint(rows.astype(np.float64) / step).astype(np.int64)
    transform = rounding_basis(metric, rounding)
    ratios, _ = planes_of(gram_in_basis(metric, transform))
    result = np.empty(rows.shape, np.int64)
    for first in range(0, len(rows), _CHUNK):
        points = in_basis(metric, transform, rows[first : first + _CHUNK].astype(np.float64) / step)
        planes = np.empty(points.shape, np.int64)
        nearest_planes(points, ratios, planes)
        result[first : first + _CHUNK] = planes @ transform
    return result


def error_bound(metric: Doubles, step: float, rounding: Rounding) -> float:
    """Return the largest error that Babai's nearest plane can make: ¼ s² Σ_i ‖b*_i‖²."""
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
