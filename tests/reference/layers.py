"""The layers of GPT-2, and of other models, in float64, forward and backward, except attention.

A backward function takes the gradient of its forward's output first and returns the gradients of its inputs in their
order. LayerNorm: Ba, Kiros and Hinton, 2016. GELU: Hendrycks and Gimpel, 2016, in the tanh form.
"""

import math

import numpy as np

from tests.reference.attention import softmax
from tests.reference.tensors import Array, Ids
from tests.rounding_marks import computed, constant, product, stored, summed, total

LAYERNORM_EPSILON = 1e-5
GELU_SCALE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715


def embedding_forward(wte: Array, wpe: Array, ids: Ids) -> Array:
    """Ids (B, T) to (B, T, C)."""
    return total(wte[ids], wpe[: ids.shape[1]])


def embedding_backward(dx: Array, ids: Ids, vocabulary: int, context: int) -> tuple[Array, Array]:
    """Return the gradients of wte (V, C) and wpe (context, C)."""
    sequences, tokens, channels = dx.shape

    def of_positions(dx: Array) -> Array:
        d_wpe = np.zeros((context, channels))
        d_wpe[:tokens] = dx.sum(axis=0)
        return d_wpe

    d_wpe = summed(of_positions(dx), sequences, lambda: of_positions(dx**2))
    return token_embedding_backward(dx, ids, vocabulary), d_wpe


def token_embedding_backward(dx: Array, ids: Ids, vocabulary: int) -> Array:
    """Return the gradient of wte (V, C)."""
    d_wte = np.zeros((vocabulary, dx.shape[-1]))
    np.add.at(d_wte, ids, dx)
    uses = int(np.bincount(ids.ravel()).max())
    return summed(d_wte, uses, lambda: token_embedding_backward(dx**2, ids, vocabulary))


def layernorm_statistics(x: Array) -> tuple[Array, Array]:
    """Return the mean and the reciprocal standard deviation of each row."""
    channels = x.shape[-1]
    mean = row_means(x)[..., 0]
    # The relative error of a sum of positive terms is sqrt(n / 3), halved by the root; then some 4 operations. An error
    # of the mean adds nothing to first order, as the centred numbers add up to 0.
    rstd = 1.0 / np.sqrt(x.var(axis=-1) + LAYERNORM_EPSILON)
    return mean, computed(rstd, lambda: rstd * math.sqrt(channels / 12.0 + 4.0))


def normalised(x: Array) -> tuple[Array, Array]:
    """Return the rows of x with mean 0 and variance 1, and their reciprocal standard deviations (..., 1)."""
    mean, rstd = (statistic[..., None] for statistic in layernorm_statistics(x))
    normal = (x - mean) * rstd
    return stored(computed(normal, lambda: 2.0 * np.abs(normal))), rstd


def layernorm_forward(x: Array, weight: Array, bias: Array) -> Array:
    """Normalise each row of x (..., C), then scale and shift it."""
    normal, _ = normalised(x)
    return computed(normal * weight + bias, lambda: 2.0 * np.abs(normal * weight) + np.abs(bias))


def layernorm_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias."""
    normal, rstd = normalised(x)
    d_normal = dy * weight
    along_one, along_normal = (row_means(terms) for terms in (d_normal, d_normal * normal))
    dx = rstd * (d_normal - along_one - normal * along_normal)

    def units() -> Array:
        size = np.abs(d_normal) + np.abs(along_one) + np.abs(normal * along_normal)
        return np.asarray(2.0 * rstd * size)

    return computed(dx, units), sum_rows(dy * normal), sum_rows(dy)


def linear_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """X (..., I) to (..., O), without a bias if that is None."""
    return product(x, weight) if bias is None else product(x, weight, bias)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Return the gradients of x, weight and bias."""
    return product(dy, weight.T), _over_rows(x, dy), sum_rows(dy)


def projection_backward(dy: Array, x: Array, rows: Array) -> tuple[Array, Array]:
    """Return the gradients of x (..., C) and rows (V, C) of the output projection, ``x @ rows.T``."""
    return product(dy, rows), _over_rows(dy, x)


def _over_rows(x: Array, y: Array) -> Array:
    return product(x.reshape(-1, x.shape[-1]).T, y.reshape(-1, y.shape[-1]))


def gelu_forward(x: Array) -> Array:
    """GELU in the tanh form."""
    inner, tanh = _gelu_parts(x)
    return computed(0.5 * x * (1.0 + tanh), lambda: gelu_units(x, inner, tanh))


def gelu_backward(dy: Array, x: Array) -> Array:
    """Return the gradient of x."""
    inner, tanh = _gelu_parts(x)
    d_inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x**2)
    dx = dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * d_inner)
    return computed(dx, lambda: np.abs(dy) * gelu_slope_units(x, inner, tanh))


def _gelu_parts(x: Array) -> tuple[Array, Array]:
    """Return half the argument of the sigmoid, and the hyperbolic tangent of it."""
    inner = GELU_SCALE * (x + GELU_CUBIC * x**3)
    return inner, np.tanh(inner)


def gelu_units(x: Array, inner: Array, tanh: Array) -> Array:
    """Return the error of GELU, in units of the rounding error of the number 1.

    GELU is y = x s with s = 1 / (1 + e**-a), a = 2 inner = x (c1 + c2 x**2). The product adds one unit of its result to
    the error of s.
    """
    s, s_error, _ = _sigmoid_units(inner, tanh)
    return np.asarray(np.abs(x) * (s_error + s))


def gelu_slope_units(x: Array, inner: Array, tanh: Array) -> Array:
    """Return the error of GELU's derivative s + y (1 - s) a', in the same units.

    The error of 1 - s is that of s, and at most 1 - s: then s is rounded to 1. Each further product and sum adds one
    unit of its result.
    """
    s, s_error, rest = _sigmoid_units(inner, tanh)
    slope = 2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x**2)
    y, y_error = np.abs(x) * s, np.abs(x) * (s_error + s)
    rest_error = np.minimum(s_error + rest, rest * 2.0**24)
    return np.asarray(s_error + (y_error * rest + y * rest_error + 6.0 * y * rest) * slope + s)


def _sigmoid_units(inner: Array, tanh: Array) -> tuple[Array, Array, Array]:
    """Return s, its error, and 1 - s.

    The argument is off by 3 |a| units, and e**-a relatively by as much, and by 3 units of the exponential itself, which
    makes s (1 - s) times as much of s. The sum and the division add 2 s.
    """
    s, rest = 0.5 * (1.0 + tanh), 0.5 * (1.0 - tanh)
    return s, s * (3.0 * (1.0 + np.abs(2.0 * inner)) * rest + 2.0), rest


def cross_entropy_forward(logits: Array, targets: Ids) -> Array:
    """Logits (..., V) and targets (...) to the loss of every row (...), 0 where the target is negative."""
    _, lse = softmax(logits)
    of_target = np.take_along_axis(logits, np.maximum(targets, 0)[..., None].astype(np.int64), axis=-1)[..., 0]
    losses = np.where(targets < 0, 0.0, lse - of_target)
    return computed(losses, lambda: np.abs(losses))


def loss_terms(logits: Array, targets: Ids, smoothing: float, z_loss: float) -> Array:
    """Return what label smoothing and the z-loss add to the sum of the losses, (2,).

    A smoothed label is (1 - e) one hot + e / V, so its loss is the cross-entropy with that distribution.
    """
    _, lse = softmax(logits)
    counts, vocabulary = targets >= 0, logits.shape[-1]
    label = (1.0 - smoothing) * (np.arange(vocabulary) == targets[..., None]) + smoothing / vocabulary
    smoothed = (label * (lse[..., None] - logits)).sum(axis=-1) * counts
    return np.array([(smoothed - cross_entropy_forward(logits, targets)).sum(), z_loss * (lse**2 * counts).sum()])


def cross_entropy_backward(
    logits: Array, targets: Ids, scale: float, smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """Return the gradient of scale * (sum of the losses with their terms), 0 where there is no loss."""
    probabilities, lse = softmax(logits)
    one_hot, factor = np.arange(logits.shape[-1]) == targets[..., None], constant(scale) * (targets >= 0)[..., None]
    if not smoothing and not z_loss:
        return computed(factor * (probabilities - one_hot), lambda: 2.0 * factor * (probabilities + one_hot))
    label = (1.0 - smoothing) * one_hot + smoothing / logits.shape[-1]
    drawn = probabilities * (1.0 + 2.0 * z_loss * lse[..., None])
    return computed(factor * (drawn - label), lambda: 4.0 * factor * (np.abs(drawn) + label))


def row_means(x: Array) -> Array:
    """Return the mean of each row, (..., 1)."""
    count = x.shape[-1]
    return summed(x.mean(axis=-1, keepdims=True), count, lambda: ((x / count) ** 2).sum(axis=-1, keepdims=True))


def sum_rows(x: Array) -> Array:
    """Return the sum of all rows, (C,)."""
    rows: Array = x.reshape(-1, x.shape[-1])
    return summed(rows.sum(axis=0), len(rows), lambda: (rows**2).sum(axis=0))
