"""AdamW for gradients of older weights: a lead in the step, and a forecast of the weights that readers get.

With gradient g of the weights τ updates ago, moments m and v, update t = 1, 2, ... and learning rate η:

    m' = β1 m + (1 − β1) g,  v' = β2 v + (1 − β2) g²
    n  = m' / (1 − β1^t) + λ (m' / (1 − β1^t) − m / (1 − β1^(t−1)))     lead λ; without the second term at t = 1
    d  = n / (√(v' / (1 − β2^t)) + ε)
    w' = (1 − η ω) w − η d
    ŵ' = w' − h e                                                       forecast, h: sum of the next τ learning rates

e is d with a lead μ in the place of λ, and predicts each step of the next τ updates. The moment goes on to change
during them, so the best μ is larger than λ.

λ = 0 is AdamW (Loshchilov and Hutter, 2019), λ = β1 NAdam (Dozat, 2016) without its schedule, which Ajanthan et al.
(2025, arXiv 2505.01099) use against a delay. The forecast is that of XPipe and PipeOptim (Guan et al., 2023,
arXiv 2312.00839): the gradient is computed where the weights will be when it is applied.
"""

import math
from typing import NamedTuple

import numpy as np

from threadloom.kernels.compiling import Floats, jit_strict_fp, jit_strict_inline


class DelayedAdamWStep(NamedTuple):
    """Hyperparameters of one update; the bias corrections are those of update t = 1, 2, ... of the run."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    bias_correction1: float  # 1 - beta1**t
    earlier_correction1: float  # 1 - beta1**(t - 1); any positive number at t = 1
    bias_correction2: float  # 1 - beta2**t
    lead: float  # λ; 0 at t = 1
    forecast_lead: float  # μ; 0 at t = 1
    horizon: float  # h, the sum of the learning rates of the next τ updates
    grad_scale: float  # clip factor, multiplied with the gradient first; 1 for none


class DelayedAdamWFactors(NamedTuple):
    """Factors of one update in float32, as used in the loop."""

    beta1: np.float32
    rest1: np.float32  # 1 - beta1
    beta2: np.float32
    rest2: np.float32  # 1 - beta2
    new: np.float32  # (1 + lead) / bias_correction1, the factor of the new first moment
    old: np.float32  # lead / earlier_correction1, that of the old one
    forecast_new: np.float32  # both with the lead of the forecast
    forecast_old: np.float32
    unbias: np.float32  # 1 / sqrt(bias_correction2)
    eps: np.float32
    clip: np.float32
    lr: np.float32
    keep: np.float32  # 1 - lr * weight_decay
    horizon: np.float32


@jit_strict_fp
def delayed_adamw_factors(step: DelayedAdamWStep, decay: float) -> DelayedAdamWFactors:
    """Return the factors of elements with the weight decay `decay`."""
    return DelayedAdamWFactors(
        np.float32(step.beta1),
        np.float32(1.0 - step.beta1),
        np.float32(step.beta2),
        np.float32(1.0 - step.beta2),
        np.float32((1.0 + step.lead) / step.bias_correction1),
        np.float32(step.lead / step.earlier_correction1),
        np.float32((1.0 + step.forecast_lead) / step.bias_correction1),
        np.float32(step.forecast_lead / step.earlier_correction1),
        np.float32(1.0 / math.sqrt(step.bias_correction2)),
        np.float32(step.eps),
        np.float32(step.grad_scale),
        np.float32(step.lr),
        np.float32(1.0 - step.lr * decay),
        np.float32(step.horizon),
    )


@jit_strict_inline
def adamw_lead_element(
    w: np.float32, g: np.float32, m: np.float32, v: np.float32, f: DelayedAdamWFactors
) -> tuple[np.float32, np.float32, np.float32]:
    """Return the new weight and moments of one element."""
    clipped = g * f.clip
    first = f.beta1 * m + f.rest1 * clipped
    second = f.beta2 * v + f.rest2 * (clipped * clipped)
    d = (f.new * first - f.old * m) / (np.sqrt(second) * f.unbias + f.eps)
    return w * f.keep - f.lr * d, first, second


@jit_strict_inline
def adamw_forecast_element(
    w: np.float32, g: np.float32, m: np.float32, v: np.float32, f: DelayedAdamWFactors
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Return the new weight, its forecast and the new moments of one element."""
    new, first, second = adamw_lead_element(w, g, m, v, f)
    e = (f.forecast_new * first - f.forecast_old * m) / (np.sqrt(second) * f.unbias + f.eps)
    return new, new - f.horizon * e, first, second


@jit_strict_fp
def _lead_range(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, f: DelayedAdamWFactors
) -> None:
    """Update a range whose elements all have the same weight decay."""
    if weights.ctypes.data == new_weights.ctypes.data:  # two names of one array would not vectorise
        for i in range(weights.shape[0]):
            weights[i], m[i], v[i] = adamw_lead_element(weights[i], gradient[i], m[i], v[i], f)
    else:
        for i in range(weights.shape[0]):
            new_weights[i], m[i], v[i] = adamw_lead_element(weights[i], gradient[i], m[i], v[i], f)


@jit_strict_fp
def adamw_lead_update(
    weights: Floats, new_weights: Floats, gradient: Floats, m: Floats, v: Floats, decayed: int, step: DelayedAdamWStep
) -> None:
    """Write w' to `new_weights` and update the moments in place, as `adamw_update` does; `step.horizon` is not used."""
    with_decay, without, d = delayed_adamw_factors(step, step.weight_decay), delayed_adamw_factors(step, 0.0), decayed
    _lead_range(weights[:d], new_weights[:d], gradient[:d], m[:d], v[:d], with_decay)
    _lead_range(weights[d:], new_weights[d:], gradient[d:], m[d:], v[d:], without)


@jit_strict_fp
def _forecast_range(
    forecast: Floats, gradient: Floats, m: Floats, v: Floats, weights: Floats, f: DelayedAdamWFactors
) -> None:
    for i in range(weights.shape[0]):
        weights[i], forecast[i], m[i], v[i] = adamw_forecast_element(weights[i], gradient[i], m[i], v[i], f)


@jit_strict_fp
def adamw_forecast_update(
    old: Floats,
    forecast: Floats,
    gradient: Floats,
    m: Floats,
    v: Floats,
    weights: Floats,
    decayed: int,
    step: DelayedAdamWStep,
) -> None:
    """Update `weights` and the moments in place and write ŵ' to `forecast`; all arrays are (N,).

    Decoupled weight decay applies to the first `decayed` elements. `old`, the forecast before this update, is not read.
    The result of an element depends on that element alone, bit for bit, so an arena may be split anywhere.
    """
    with_decay, without, d = delayed_adamw_factors(step, step.weight_decay), delayed_adamw_factors(step, 0.0), decayed
    _forecast_range(forecast[:d], gradient[:d], m[:d], v[:d], weights[:d], with_decay)
    _forecast_range(forecast[d:], gradient[d:], m[d:], v[d:], weights[d:], without)
