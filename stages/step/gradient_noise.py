"""The noise of the gradient, from the gradients of the lanes.

With b_l sequences in lane l, B in all, ĝ_l the mean gradient of the sequences of a lane and ĝ that of the batch:

    E |ĝ_l|² = |G|² + tr Σ / b_l,    E |ĝ|² = |G|² + tr Σ / B

so tr Σ = (mean of |ĝ_l|² over the lanes − |ĝ|²) / (mean of 1 / b_l − 1 / B) and |G|² = |ĝ|² − tr Σ / B are unbiased for
sequences that are drawn independently and count the same (McCandlish et al. 2018, arXiv 1812.06162, equations A.2). The
norms are those before any clipping, summed over chunks of fixed size in order, so threads do not affect them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from threadloom import kernels
from threadloom.pipeline import LanePlan, Lanes
from threadloom.stages.memory import GradientNoise


class NoiseMeter:
    """The sums of squares of every lane and of the gradient, each written by the shard that owns the chunk."""

    def __init__(self, lanes: Lanes, micro_batch: int) -> None:
        self._lanes = lanes
        chunks = -(-lanes.flat.shape[1] // kernels.CHUNK)
        self._squares: NDArray[np.float64] = np.zeros((lanes.plan.lanes + 1, chunks))  # the last row: the gradient
        self._sequences = sequences_of(lanes.plan, micro_batch)

    def before(self, first: int, last: int) -> None:
        """Compute the squares of some chunks of every lane, before they are summed."""
        for lane, squares in zip(self._lanes.flat, self._squares, strict=False):
            kernels.sum_lanes(lane[np.newaxis], lane, squares, first, last)

    def after(self, squares: NDArray[np.float64], first: int, last: int) -> None:
        """Keep the squares of some chunks of the gradient, before it is clipped."""
        self._squares[-1, first:last] = squares[first:last]

    def noise(self, scale: float) -> GradientNoise | None:
        """Return the noise of a batch whose gradient contains the loss scale `scale`; None if it is not finite."""
        *of_lanes, whole = (math.fsum(row.tolist()) / scale**2 for row in self._squares)
        if not all(map(math.isfinite, (*of_lanes, whole))):
            return None
        total, count = sum(self._sequences), len(self._sequences)
        # a lane has the sum of its sequences, divided by those of the batch
        means = [square * (total / size) ** 2 for square, size in zip(of_lanes, self._sequences, strict=True)]
        spread = math.fsum(1 / size for size in self._sequences) / count - 1 / total
        trace = (math.fsum(means) / count - whole) / spread
        return GradientNoise(trace, whole - trace / total)


def sequences_of(plan: LanePlan, micro_batch: int) -> list[int]:
    """Return the number of sequences of each lane."""
    return [len(range(lane, plan.micro_batches, plan.lanes)) * micro_batch for lane in range(plan.lanes)]
