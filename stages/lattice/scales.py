"""The step of a grid by a measured search: the least error among those whose integers take no more than so many bits.

The step at which plain rounding takes as many bits is the start. Other ways to round move elements by more than half a
step, so their integers have another entropy, and their best step is another one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.lattice.reduction import Doubles
from threadloom.stages.lattice.rounding import Grid, entropy_bits, weighted_error

_SAMPLE = 512
"""Rows that the candidates are measured on, at even distances."""
_CANDIDATES, _PER_OCTAVE = 16, 64
"""Candidates on either side of the start, and their number in a factor of two: from 0.84 to 1.19 times the start."""


class Scale(NamedTuple):
    """A step with what it gives on a sample of the rows."""

    step: float
    bits: float
    """Entropy of the integers, per element."""
    error: float
    """Mean error of a row in the metric."""


def measured_scale(rows: NDArray[np.float32], metric: Doubles, grid: Grid, step: float) -> Scale:
    """Return what a step gives."""
    sample = _sample(rows)
    integers = grid.round(sample, step)
    rounded = (integers * step).astype(np.float32)
    return Scale(step, entropy_bits(integers), weighted_error(sample, rounded, metric))


def best_scale(rows: NDArray[np.float32], metric: Doubles, grid: Grid, step: float, bits: float) -> Scale:
    """Return the candidate near `step` with the least error whose integers have at most `bits`.

    If none has, as of very few rows, it is the one with the fewest.
    """
    factors = 2.0 ** (np.arange(-_CANDIDATES, _CANDIDATES + 1) / _PER_OCTAVE)
    found = [measured_scale(rows, metric, grid, float(step * factor)) for factor in factors]
    allowed = [scale for scale in found if scale.bits <= bits]
    if not allowed:
        return min(found, key=lambda scale: scale.bits)
    return min(allowed, key=lambda scale: scale.error)


def _sample(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows[:: max(len(rows) // _SAMPLE, 1)]
