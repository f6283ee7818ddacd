"""RMS norm and the gated MLP in float64, forward and backward.

RMS norm: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019. SiLU, x * sigmoid(x), as the gate of an MLP:
Shazeer, GLU Variants Improve Transformer, 2020, section 2.
"""

import math

import numpy as np

from tests.reference.layers import row_means, sum_rows
from tests.reference.tensors import Array
from tests.rounding_marks import computed, multiple, stored


def rms_statistic(x: Array, epsilon: float) -> Array:
    """Return the reciprocal root of the mean of squares of each row."""
    rstd = 1.0 / np.sqrt((x**2).mean(axis=-1) + epsilon)
    return computed(rstd, lambda: rstd * math.sqrt(x.shape[-1] / 12.0 + 4.0))  # as in `layernorm_statistics`


def rms_normalised(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the rows of x divided by the root of their mean of squares, and its reciprocals (..., 1)."""
    rstd = rms_statistic(x, epsilon)[..., None]
    return multiple(x, rstd), rstd


def rmsnorm_forward(x: Array, weight: Array, epsilon: float) -> Array:
    """Normalise each row of x (..., C), then scale it. The rows before the scaling are stored."""
    normal, _ = rms_normalised(x, epsilon)
    return multiple(stored(normal), weight)


def rmsnorm_backward(dy: Array, x: Array, weight: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the gradients of x and weight."""
    normal, rstd = rms_normalised(x, epsilon)
    return _norm_backward(dy, stored(normal), rstd, weight)


def head_norm_forward(x: Array, weight: Array, epsilon: float) -> Array:
    """Return the RMS norm of every head of x (..., heads, D). The rows before the scaling are not stored."""
    normal, _ = rms_normalised(x, epsilon)
    return multiple(normal, weight)


def head_norm_backward(dy: Array, x: Array, weight: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the gradients of x and weight."""
    return _norm_backward(dy, *rms_normalised(x, epsilon), weight)


def _norm_backward(dy: Array, normal: Array, rstd: Array, weight: Array) -> tuple[Array, Array]:
    d_normal = dy * weight
    through = normal * row_means(d_normal * normal)
    dx = rstd * (d_normal - through)
    return computed(dx, lambda: 2.0 * rstd * (np.abs(d_normal) + np.abs(through))), sum_rows(dy * normal)


def swiglu_forward(gate_up: Array) -> Array:
    """Return SiLU(gate) * up of rows (..., 2F), of which the first half is the gate."""
    gate, up = np.split(gate_up, 2, axis=-1)
    silu, silu_error = _silu(gate)
    return computed(silu * up, lambda: (silu_error + np.abs(silu)) * np.abs(up))


def swiglu_backward(dy: Array, gate_up: Array) -> Array:
    """Return the gradient of gate_up."""
    gate, up = np.split(gate_up, 2, axis=-1)
    silu, silu_error = _silu(gate)
    slope, slope_error = _silu_slope(gate)
    d_gate = computed(dy * up * slope, lambda: np.abs(dy * up) * (slope_error + 2.0 * np.abs(slope)))
    d_up = computed(dy * silu, lambda: np.abs(dy) * (silu_error + np.abs(silu)))
    return np.concatenate([d_gate, d_up], axis=-1)


def _silu(x: Array) -> tuple[Array, Array]:
    """Return SiLU, and its error in units of the rounding error of the number 1."""
    s, s_error, _ = _sigmoid(x)
    return x * s, np.abs(x) * (s_error + s)


def _silu_slope(x: Array) -> tuple[Array, Array]:
    """Return the derivative of SiLU, s + x s (1 - s), and its error in the same units.

    The error of 1 - s is that of s and of its own rounding, and at most 1 - s: then s is rounded to 1. Each further
    product and sum adds one unit of its result.
    """
    s, s_error, rest = _sigmoid(x)
    silu, silu_error = _silu(x)
    rest_error = np.minimum(s_error + rest, rest * 2.0**24)
    error = s_error + silu_error * rest + np.abs(silu) * (rest_error + rest)
    slope = s + silu * rest
    return slope, error + np.abs(slope)


def _sigmoid(x: Array) -> tuple[Array, Array, Array]:
    """Return s = 1 / (1 + e**-x), its error, and 1 - s.

    e**-x is relatively off by 3 units, which makes s (1 - s) times as much of s. The sum and the division add 2 s.
    """
    s, rest = np.exp(-np.logaddexp(0.0, -x)), np.exp(-np.logaddexp(0.0, x))
    return s, s * (3.0 * rest + 2.0), rest
