"""AdamW (Loshchilov and Hutter, 2019) and the clipping of gradients, in float64."""

import math
from dataclasses import dataclass

import numpy as np

from tests.reference.tensors import DECAYED, Tensors

CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def global_norm(grads: Tensors) -> float:
    """Return the Euclidean norm of all gradients as one vector."""
    return math.sqrt(sum(float((gradient**2).sum()) for gradient in grads.values()))


def clip_by_global_norm(grads: Tensors, max_norm: float) -> tuple[Tensors, float]:
    """Return the gradients scaled so that their norm is at most max_norm, and the norm that they had."""
    norm = global_norm(grads)
    scale = min(1.0, max_norm / (norm + CLIP_EPSILON))
    return {name: scale * gradient for name, gradient in grads.items()}, norm


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
    for name, w in weights.items():
        decay = settings.weight_decay if name in settings.decayed else 0.0
        new_m[name] = settings.beta1 * m[name] + (1.0 - settings.beta1) * grads[name]
        new_v[name] = settings.beta2 * v[name] + (1.0 - settings.beta2) * grads[name] ** 2
        m_unbiased = new_m[name] / (1.0 - settings.beta1**step)
        v_unbiased = new_v[name] / (1.0 - settings.beta2**step)
        decoupled = w * (1.0 - settings.lr * decay)
        new_weights[name] = decoupled - settings.lr * m_unbiased / (np.sqrt(v_unbiased) + settings.epsilon)
    return new_weights, new_m, new_v
