"""Parts of layer normalisation that every number format shares (Ba, Kiros and Hinton, 2016, equation 4)."""

from typing import NamedTuple

import numpy as np

from threadloom.kernels.compiling import Floats, jit_inline_body

EPSILON = np.float32(1e-5)
"""Added to the variance, as in GPT-2."""
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


class Affine(NamedTuple):
    """Scale and shift of a LayerNorm, or their gradients."""

    weight: Floats  # (C,)
    bias: Floats  # (C,)


@jit_inline_body  # into the loop over rows: the order of the sums depends on the loop nest that LLVM vectorises
def row_statistics(row: Floats) -> tuple[np.float32, np.float32]:
    """Return mean and ``rstd = 1 / sqrt(var + EPSILON)`` of `row` (C,).

    The variance is the biased one, summed from the centred row.
    """
    channels = np.float32(row.shape[0])
    total = _ZERO
    for j in range(row.shape[0]):
        total += row[j]
    mean = np.float32(total / channels)
    squares = _ZERO
    for j in range(row.shape[0]):
        centred = row[j] - mean
        squares += centred * centred
    return mean, np.float32(_ONE / np.sqrt(squares / channels + EPSILON))
