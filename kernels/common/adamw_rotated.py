"""AdamW in a rotated basis: the second moment is that of the gradient in other coordinates than those of the weights.

With the gradient G̃ = G Q of a matrix in the basis Q (or Qᵀ G), its moments m and v in that basis, and the rest as in
`kernels.common.adamw_delayed`:

    m' = β1 m + (1 − β1) G̃,  v' = β2 v + (1 − β2) G̃²
    D̃  = n / (√(v' / (1 − β2^t)) + ε)              n with the lead λ, as there
    W' = (1 − η ω) W − η D̃ Qᵀ
    Ŵ' = W' − h Ẽ Qᵀ                               Ẽ is D̃ with the lead μ

Source: Vyas et al. 2024 (arXiv 2409.11321, "SOAP"), one-sided, without its moving average of the covariance.
"""

import numpy as np

from threadloom.kernels.common.adamw_delayed import DelayedAdamWFactors, DelayedAdamWStep, delayed_adamw_factors
from threadloom.kernels.compiling import Floats, jit_strict_fp, jit_strict_inline


@jit_strict_inline
def _direction_element(
    g: np.float32, m: np.float32, v: np.float32, f: DelayedAdamWFactors
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Return the direction of one element, that of its forecast, and the new moments."""
    clipped = g * f.clip
    first = f.beta1 * m + f.rest1 * clipped
    second = f.beta2 * v + f.rest2 * (clipped * clipped)
    size = np.sqrt(second) * f.unbias + f.eps
    return (f.new * first - f.old * m) / size, (f.forecast_new * first - f.forecast_old * m) / size, first, second


@jit_strict_fp
def rotated_directions(direction: Floats, ahead: Floats, m: Floats, v: Floats, step: DelayedAdamWStep) -> None:
    """Update the moments (N,) with the rotated gradient in `direction`, and write D̃ to `direction`, and Ẽ to `ahead`.

    `ahead` is (N,), or (0,) without a forecast.
    """
    f = delayed_adamw_factors(step, 0.0)
    if ahead.shape[0] > 0:
        for i in range(m.shape[0]):
            direction[i], ahead[i], m[i], v[i] = _direction_element(direction[i], m[i], v[i], f)
    else:
        for i in range(m.shape[0]):
            direction[i], _, m[i], v[i] = _direction_element(direction[i], m[i], v[i], f)


@jit_strict_fp
def rotated_update(weights: Floats, new_weights: Floats, direction: Floats, step: DelayedAdamWStep) -> None:
    """Write W' to `new_weights`, which may be `weights`; `direction` is that of the weights, all are (N,)."""
    f = delayed_adamw_factors(step, step.weight_decay)
    if weights.ctypes.data == new_weights.ctypes.data:  # two names of one array would not vectorise
        for i in range(weights.shape[0]):
            weights[i] = weights[i] * f.keep - f.lr * direction[i]
    else:
        for i in range(weights.shape[0]):
            new_weights[i] = weights[i] * f.keep - f.lr * direction[i]


@jit_strict_fp
def rotated_forecast_update(
    weights: Floats, forecast: Floats, direction: Floats, ahead: Floats, step: DelayedAdamWStep
) -> None:
    """Update `weights` in place and write Ŵ' to `forecast`; `direction` and `ahead` are those of the weights."""
    f = delayed_adamw_factors(step, step.weight_decay)
    for i in range(weights.shape[0]):
        new = weights[i] * f.keep - f.lr * direction[i]
        weights[i] = new
        forecast[i] = new - f.horizon * ahead[i]
