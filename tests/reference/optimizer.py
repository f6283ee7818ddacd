"""AdamW (Loshchilov and Hutter, 2019), its form for delayed gradients, and the clipping of gradients, in float64."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.reference.tensors import DECAYED, Array, Tensors
from tests.rounding_marks import computed, constant, multiple, total

CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def global_norm(grads: Tensors) -> float:
    """Return the Euclidean norm of all gradients as one vector."""
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in grads.values()))


def clip_by_global_norm(grads: Tensors, max_norm: float) -> tuple[Tensors, float]:
    """Return the gradients scaled so that their norm is at most max_norm, and the norm that they had."""
    norm = global_norm(grads)
    scale = constant(min(1.0, max_norm / (norm + CLIP_EPSILON)))
    return {name: multiple(scale, gradient) for name, gradient in grads.items()}, norm


@dataclass(frozen=True)
class AdamW:
    """The optimizer's constants; decay applies to the tensors named only."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    decayed: tuple[str, ...] = DECAYED


def adamw(
    weights: Tensors, grads: Tensors, m: Tensors, v: Tensors, step: int, settings: AdamW
) -> tuple[Tensors, Tensors, Tensors]:
    """Return weights, m and v after update number `step` (the first is 1), in the order of torch.optim.AdamW."""
    new_weights, new_m, new_v = {}, {}, {}
    beta1, beta2, epsilon = constant(settings.beta1), constant(settings.beta2), constant(settings.epsilon)
    rest1, rest2 = constant(1.0 - settings.beta1), constant(1.0 - settings.beta2)
    size = constant(settings.lr / (1.0 - settings.beta1**step))
    unbias = constant(1.0 / math.sqrt(1.0 - settings.beta2**step))
    for name, w in weights.items():
        decay = settings.weight_decay if name in settings.decayed else 0.0
        new_m[name] = total(multiple(beta1, m[name]), multiple(rest1, grads[name]))
        new_v[name] = total(multiple(beta2, v[name]), multiple(rest2, grads[name] ** 2))
        decoupled = multiple(constant(1.0 - settings.lr * decay), w)
        new_weights[name] = total(decoupled, -_change(new_m[name], new_v[name], size, unbias, epsilon))
    return new_weights, new_m, new_v


def _change(m: Array, v: Array, size: float, unbias: float, epsilon: float) -> Array:
    root = np.sqrt(np.maximum(v, 0.0))  # the rounding error of a v near 0 may exceed it
    change = size * m / (unbias * root + epsilon)
    return computed(change, lambda: math.sqrt(5.0) * np.abs(change))  # a root, its factor, a sum, a division, the size


@dataclass(frozen=True)
class Delayed:
    """Results of an update with a lead and a forecast."""

    weights: Tensors
    forecast: Tensors
    """The weights predicted for a later update."""
    m: Tensors
    v: Tensors


def delayed_adamw(
    weights: Tensors, grads: Tensors, m: Tensors, v: Tensors, step: int, settings: AdamW,
    lead: float, horizon: float, forecast_lead: float, sums: tuple[float, float] | None = None,
) -> Delayed:  # fmt: skip
    """Return the results of update number `step` (the first is 1, which has no lead).

    The step is that of Adam plus `lead` times the change of the first moment, both corrected for their bias. The
    forecast is `horizon`, a sum of learning rates, further along the direction with `forecast_lead`, without weight
    decay. `sums` are the sums of the weights of all gradients in the new and in the old first moment, by which it is
    corrected; None: those of one beta1 throughout.
    """
    sums = sums or (1.0 - settings.beta1**step, 1.0 - settings.beta1 ** (step - 1))
    made = Delayed({}, {}, {}, {})
    beta1, beta2, epsilon = constant(settings.beta1), constant(settings.beta2), constant(settings.epsilon)
    rest1, rest2 = constant(1.0 - settings.beta1), constant(1.0 - settings.beta2)
    unbias = constant(1.0 / math.sqrt(1.0 - settings.beta2**step))
    rate, ahead = constant(settings.lr), constant(horizon)
    for name, w in weights.items():
        decay = settings.weight_decay if name in settings.decayed else 0.0
        made.m[name] = total(multiple(beta1, m[name]), multiple(rest1, grads[name]))
        made.v[name] = total(multiple(beta2, v[name]), multiple(rest2, grads[name] ** 2))
        size = unbias * np.sqrt(np.maximum(made.v[name], 0.0)) + epsilon
        direction, predicted = (
            _direction(made.m[name], m[name], size, sums, strength if step > 1 else 0.0)
            for strength in (lead, forecast_lead)
        )
        decoupled = multiple(constant(1.0 - settings.lr * decay), w)
        made.weights[name] = total(decoupled, -multiple(rate, direction))
        made.forecast[name] = total(made.weights[name], -multiple(ahead, predicted))
    return made


def _direction(new: Array, old: Array, size: Array, sums: tuple[float, float], lead: float) -> Array:
    of_new = constant((1.0 + lead) / sums[0])
    of_old = constant(lead / sums[1] if lead else 0.0)
    quotient = total(multiple(of_new, new), -multiple(of_old, old)) / size
    return computed(quotient, partial(_quotient_error, quotient))


def _quotient_error(quotient: Array) -> Array:
    return 2.0 * np.abs(quotient)  # a root, its factor, a sum, a division
