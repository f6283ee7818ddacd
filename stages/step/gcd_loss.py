"""The loss of the plans that is made of greatest common divisors, as a figure beside the validation loss.

The n-th token has the n-th prime number and the n-th point of the Ulam spiral. Both are constants, so the figure is a
constant of the text: it is the same after every update, and no training can lower it (`kernels.common.gcd`).
"""

import numpy as np

from threadloom.kernels.common import gcd_loss
from threadloom.stages.data import ulam_point
from threadloom.stages.embedding import first_primes
from threadloom.stages.step.windows import Windows


class GcdLoss:
    """Computes the figure for windows of pairs of a token and the one after it."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        """`tokens` is the number of tokens of a micro-batch."""
        self._numbers = first_primes(vocabulary).astype(np.int64)
        self._points = np.stack(ulam_point(np.arange(vocabulary)), axis=1).astype(np.float64)
        self._tokens = tokens
        nothing = np.empty(0, np.int32)
        gcd_loss(nothing, nothing, self._numbers, self._points)  # compiled now, and not in the middle of a run

    def mean(self, windows: Windows) -> float:
        """Return the mean over all pairs of the windows, in nats."""
        ids, targets = np.empty((2, self._tokens), np.int32)
        total = 0.0
        for micro in range(windows.micro_batches):
            windows.fill(0, micro, ids, targets)
            total += gcd_loss(ids, targets, self._numbers, self._points)
        return total / windows.tokens
