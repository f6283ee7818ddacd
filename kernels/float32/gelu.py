"""GELU in GPT-2's tanh form (Hendrycks and Gimpel, 2016, section 2).

``0.5 x (1 + tanh(u))`` with ``u = sqrt(2 / pi) (x + 0.044715 x**3)`` equals ``x * sigmoid(2u)``, which needs one exp.
The bias of the layer before is in `x` already: `linear_forward` writes it where BLAS would write zeros.
"""

import numpy as np

from threadloom.kernels.compiling import Floats, jit_kernel
from threadloom.kernels.simd import sigmoid32

_LINEAR = np.float32(1.5957691216057308)  # 2 sqrt(2 / pi)
_CUBIC = np.float32(0.07135481282636)  # 0.044715 * 2 sqrt(2 / pi)
_THREE = np.float32(3.0)
_ONE = np.float32(1.0)


@jit_kernel
def gelu_forward(x: Floats, out: Floats) -> None:
    """Write GELU(x) to `out`; both (R, F)."""
    for r in range(x.shape[0]):
        row, target = x[r], out[r]
        for j in range(row.shape[0]):
            v = row[j]
            target[j] = v * sigmoid32(v * (_LINEAR + _CUBIC * v * v))


@jit_kernel
def gelu_backward(x: Floats, d: Floats, out: Floats) -> None:
    """Turn `d`, the gradient of GELU(x), into the gradient of `x` in place, and write GELU(x) again to `out`; (R, F).

    With s = sigmoid(2u): ``d/dx (x s) = s + x s (1 - s) (2u)'``.
    """
    for r in range(x.shape[0]):
        row, gradient, target = x[r], d[r], out[r]
        for j in range(row.shape[0]):
            v = row[j]
            squared = v * v
            s = sigmoid32(v * (_LINEAR + _CUBIC * squared))
            y = v * s
            target[j] = y
            gradient[j] *= s + y * (_ONE - s) * (_LINEAR + _THREE * _CUBIC * squared)
