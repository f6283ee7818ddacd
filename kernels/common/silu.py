"""Scalar formula of SiLU, ``x * sigmoid(x)`` (Elfwing, Uchibe and Doya, 2017, equation 5), in float32.

Below `EXP_LOWEST` the sigmoid is less than the smallest normal number, and 0 here: `sigmoid32` is constant there, and
its product with an x of -1e38 would not vanish. SiLU is finite for every finite x; at minus infinity it is NaN.
"""

import numpy as np

from threadloom.kernels.compiling import jit_always_inline
from threadloom.kernels.simd import EXP_LOWEST, exp32

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@jit_always_inline  # not reassociated: in another order x * e**-x might be computed, which overflows
def silu_and_derivative(x: np.float32) -> tuple[np.float32, np.float32]:
    """Return SiLU(x) and its derivative. With s = sigmoid(x): ``d/dx (x s) = s + x s (1 - s)``, 1 - s = e**-x s."""
    e = exp32(-x)
    s = _ZERO if x < EXP_LOWEST else _ONE / (_ONE + e)
    y = x * s
    return y, s + y * (e * s)


@jit_always_inline
def silu(x: np.float32) -> np.float32:
    """Return SiLU(x)."""
    return x * (_ZERO if x < EXP_LOWEST else _ONE / (_ONE + exp32(-x)))
