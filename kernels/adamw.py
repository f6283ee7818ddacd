"""AdamW (Loshchilov and Hutter, 2019, algorithm 2), with PyTorch's order of operations, in one streaming pass."""

from typing import NamedTuple

import numpy as np

from kernels.jit import exact
from kernels.tensors import Floats

_ONE = np.float32(1.0)


class AdamWStep(NamedTuple):
    """The numbers of one update; the bias corrections belong to update t = 1, 2, ... of the run."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float  # 1 - beta1**t
    bias_correction2: float  # 1 - beta2**t
    grad_scale: float  # the clip factor that the gradient is multiplied with first; 1 leaves it


@exact
def _update_range(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, decay: float, step: AdamWStep
) -> None:
    """Update one range whose elements are all decayed alike: ``weights * decay`` first, then Adam's step."""
    beta1, beta2 = np.float32(step.beta1), np.float32(step.beta2)
    rest1, rest2 = np.float32(1.0 - step.beta1), np.float32(1.0 - step.beta2)
    size = np.float32(step.lr / step.bias_correction1)
    unbias = np.float32(1.0 / np.sqrt(step.bias_correction2))
    eps, clip, keep = np.float32(step.eps), np.float32(step.grad_scale), np.float32(decay)
    for i in range(weights.shape[0]):
        g = gradient[i] * clip
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * (g * g)
        m[i] = first
        v[i] = second
        new_weights[i] = weights[i] * keep - size * (first / (np.sqrt(second) * unbias + eps))


@exact
def _update_range_in_place(weights: Floats, gradient: Floats, m: Floats, v: Floats, decay: float, step: AdamWStep) -> None:
    """Do what `_update_range` does where the old and the new weights are one array: only so does it vectorise."""
    beta1, beta2 = np.float32(step.beta1), np.float32(step.beta2)
    rest1, rest2 = np.float32(1.0 - step.beta1), np.float32(1.0 - step.beta2)
    size = np.float32(step.lr / step.bias_correction1)
    unbias = np.float32(1.0 / np.sqrt(step.bias_correction2))
    eps, clip, keep = np.float32(step.eps), np.float32(step.grad_scale), np.float32(decay)
    for i in range(weights.shape[0]):
        g = gradient[i] * clip
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * (g * g)
        m[i] = first
        v[i] = second
        weights[i] = weights[i] * keep - size * (first / (np.sqrt(second) * unbias + eps))


@exact
def adamw_update(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, decayed: int, step: AdamWStep
) -> None:
    """Write the updated weights to `new_weights` and update the moments `m` and `v` in place; all flat, one length.

    The first `decayed` elements get decoupled weight decay. `new_weights` may be `weights` itself, but must not overlap
    it in part. Each element's result depends on that element alone, bit for bit, so an arena may be cut at will: give
    a slice ``min(max(decayed - start, 0), length)``.
    """
    decay = 1.0 - step.lr * step.weight_decay
    if weights.ctypes.data == new_weights.ctypes.data:
        _update_range_in_place(weights[:decayed], gradient[:decayed], m[:decayed], v[:decayed], decay, step)
        _update_range_in_place(weights[decayed:], gradient[decayed:], m[decayed:], v[decayed:], 1.0, step)
    else:
        new = new_weights
        _update_range(weights[:decayed], new[:decayed], gradient[:decayed], m[:decayed], v[:decayed], decay, step)
        _update_range(weights[decayed:], new[decayed:], gradient[decayed:], m[decayed:], v[decayed:], 1.0, step)
