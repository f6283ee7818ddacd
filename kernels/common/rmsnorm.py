"""Row statistic of RMS normalisation, for rows of every number format (Zhang and Sennrich, 2019, equation 4)."""

import numpy as np

from threadloom.kernels.compiling import jit_inline_body
from threadloom.kernels.simd import FloatRow, load_element

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@jit_inline_body  # into the loop over rows: the order of the sum depends on the loop nest that LLVM vectorises
def reciprocal_rms(row: FloatRow, epsilon: np.float32) -> np.float32:
    """Return ``rstd = 1 / sqrt(mean(row**2) + epsilon)`` of `row` (C,)."""
    squares = _ZERO
    for j in range(row.shape[0]):
        value = load_element(row, j)
        squares += value * value
    return np.float32(_ONE / np.sqrt(squares / np.float32(row.shape[0]) + epsilon))
