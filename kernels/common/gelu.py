"""Scalar formula of GELU in GPT-2's tanh form (Hendrycks and Gimpel, 2016, section 2), in float32.

``0.5 x (1 + tanh(u))`` with ``u = sqrt(2 / pi) (x + 0.044715 x**3)`` equals ``x * sigmoid(2u)``, which needs one exp.
"""

import numpy as np

from threadloom.kernels.compiling import jit_kernel
from threadloom.kernels.simd import GELU_CUBIC, GELU_LINEAR, sigmoid32

_THREE = np.float32(3.0)
_ONE = np.float32(1.0)


@jit_kernel
def gelu(x: np.float32) -> np.float32:
    """Return GELU(x)."""
    return x * sigmoid32(x * (GELU_LINEAR + GELU_CUBIC * x * x))


@jit_kernel
def gelu_and_derivative(x: np.float32) -> tuple[np.float32, np.float32]:
    """Return GELU(x) and its derivative. With s = sigmoid(2u): ``d/dx (x s) = s + x s (1 - s) (2u)'``."""
    squared = x * x
    s = sigmoid32(x * (GELU_LINEAR + GELU_CUBIC * squared))
    y = x * s
    return y, s + y * (_ONE - s) * (GELU_LINEAR + _THREE * GELU_CUBIC * squared)
