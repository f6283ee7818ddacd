"""The exponential moving average of weights, in one streaming pass."""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_strict_fp


@jit_strict_fp
def average_weights(average: Floats, weights: Floats, share: float) -> None:
    """Add `share` of the difference to `weights` to `average`, in place; both are (N,).

    The result of an element depends on that element alone, bit for bit, so an arena may be split anywhere.
    """
    part = np.float32(share)
    for i in range(average.shape[0]):
        average[i] += part * (weights[i] - average[i])
