"""AdamW (Loshchilov and Hutter, 2019, algorithm 2) with PyTorch's order of operations, in one streaming pass."""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.compiling import Floats, jit_strict_fp, jit_strict_inline


class AdamWStep(NamedTuple):
    """Hyperparameters of one update; the bias corrections are those of update t = 1, 2, ... of the run."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float  # 1 - beta1**t
    bias_correction2: float  # 1 - beta2**t
    grad_scale: float  # clip factor, multiplied with the gradient first; 1 for none


class AdamWFactors(NamedTuple):
    """Factors of one update in float32, as used in the loop."""

    beta1: np.float32
    rest1: np.float32  # 1 - beta1
    beta2: np.float32
    rest2: np.float32  # 1 - beta2
    size: np.float32  # lr / bias_correction1
    unbias: np.float32  # 1 / sqrt(bias_correction2)
    eps: np.float32
    clip: np.float32
    keep: np.float32  # 1 - lr * weight_decay


@jit_strict_fp
def adamw_factors(step: AdamWStep, decay: float) -> AdamWFactors:
    """Return the factors of elements with the weight decay `decay`."""
    return AdamWFactors(
        np.float32(step.beta1),
        np.float32(1.0 - step.beta1),
        np.float32(step.beta2),
        np.float32(1.0 - step.beta2),
        np.float32(step.lr / step.bias_correction1),
        np.float32(1.0 / math.sqrt(step.bias_correction2)),
        np.float32(step.eps),
        np.float32(step.grad_scale),
        np.float32(1.0 - step.lr * decay),
    )


@jit_strict_inline
def adamw_element(
    weight: np.float32, g: np.float32, m: np.float32, v: np.float32, f: AdamWFactors
) -> tuple[np.float32, np.float32, np.float32]:
    """Return the new weight and moments of one element."""
    clipped = g * f.clip
    first = f.beta1 * m + f.rest1 * clipped
    second = f.beta2 * v + f.rest2 * (clipped * clipped)
    return weight * f.keep - f.size * (first / (np.sqrt(second) * f.unbias + f.eps)), first, second


@jit_strict_fp
def _update_range(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, f: AdamWFactors
) -> None:
    """Update a range whose elements all have the same weight decay."""
    if weights.ctypes.data == new_weights.ctypes.data:  # two names of one array would not vectorise
        for i in range(weights.shape[0]):
            weights[i], m[i], v[i] = adamw_element(weights[i], gradient[i], m[i], v[i], f)
    else:
        for i in range(weights.shape[0]):
            new_weights[i], m[i], v[i] = adamw_element(weights[i], gradient[i], m[i], v[i], f)


@jit_strict_fp
def adamw_update(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, decayed: int, step: AdamWStep
) -> None:
    """Write the updated weights to `new_weights` and update the moments `m` and `v` in place; all arrays are (N,).

    Decoupled weight decay applies to the first `decayed` elements. `new_weights` may be `weights` itself, but must not
    overlap it partially. The result of an element depends on that element alone, bit for bit, so an arena may be split
    anywhere: a slice has ``min(max(decayed - start, 0), length)`` decayed elements.
    """
    with_decay, without, d = adamw_factors(step, step.weight_decay), adamw_factors(step, 0.0), decayed
    _update_range(weights[:d], new_weights[:d], gradient[:d], m[:d], v[:d], with_decay)
    _update_range(weights[d:], new_weights[d:], gradient[d:], m[d:], v[d:], without)
