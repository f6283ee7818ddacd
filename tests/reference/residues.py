"""Output projection of tokens that are sums of residues, with softmax cross-entropy, in float64."""

from collections.abc import Sequence

import numpy as np

from tests.reference.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    layernorm_backward,
    layernorm_forward,
)
from tests.reference.tensors import Array, Ids, Tensors
from tests.rounding_marks import product, rounded_sum, stored


def residue_matrix(vocabulary: int, moduli: Sequence[int], own: int) -> Array:
    """Return M (V, P): a token's row of the embedding is M's row times the factors."""
    matrix = np.zeros((vocabulary, own + sum(moduli)))
    for token in range(vocabulary):
        first = own
        if token < own:
            matrix[token, token] = 1.0
            continue
        for modulus in moduli:
            matrix[token, first + (token - own) % modulus] = np.float32(len(moduli) ** -0.5)
            first += modulus
    return matrix


def residue_head(
    x: Array,
    norm: tuple[Array, Array],
    factors: Array,
    matrix: Array,
    targets: Ids,
    scale: float,
    terms: tuple[float, float] = (0.0, 0.0),
) -> Tensors:
    """Return "loss", the sum of the losses of the rows of x (R, C), and the gradients of scale times it.

    They are those of the factors (P, C), of the LayerNorm before the projection, and of x ("dx").
    """
    h = stored(layernorm_forward(x, *norm))
    logits = product(product(h, factors.T), matrix.T)
    d_columns = stored(product(cross_entropy_backward(logits, targets, scale, *terms), matrix))
    dx, d_weight, d_bias = layernorm_backward(product(d_columns, factors), x, norm[0])
    return {
        "loss": rounded_sum(cross_entropy_forward(logits, targets)),
        "factors": product(d_columns.T, h),
        "lnf_weight": d_weight,
        "lnf_bias": d_bias,
        "dx": dx,
    }
