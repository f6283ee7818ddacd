"""Output projection of low rank by bands, ``rows of band b = A_b @ P_b``, with softmax cross-entropy, in float64."""

from collections.abc import Sequence

import numpy as np

from tests.reference.layers import (
    cross_entropy_backward,
    cross_entropy_forward,
    layernorm_backward,
    layernorm_forward,
)
from tests.reference.tensors import Array, Ids, Tensors
from tests.rounding_marks import product, rounded_sum, stored, total

Band = tuple[Array, Array | None]
"""A_b (V_b, E_b) and P_b (E_b, C); without P_b the rows are A_b."""


def random_bands(
    sizes: Sequence[tuple[int, int]], channels: int, rng: np.random.Generator, spread: float = 0.3
) -> list[Band]:
    """Return bands of these (tokens, rank), whose numbers are exact in float32."""

    def numbers(*shape: int) -> Array:
        return (spread * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    return [(numbers(v, e), numbers(e, channels) if e < channels else None) for v, e in sizes]


def whole_embedding(bands: Sequence[Band]) -> Array:
    """Return the rows of all bands, (V, C)."""
    return np.concatenate([rows if basis is None else rows @ basis for rows, basis in bands])


def factor_gradients(d_embedding: Array, bands: Sequence[Band]) -> tuple[Array, Array]:
    """Return the gradients of all A_b, and of all P_b, flat, given that of the rows (V, C)."""
    d_rows, d_bases, first = [], [np.empty(0)], 0
    for rows, basis in bands:
        part = d_embedding[first : first + len(rows)]
        first += len(rows)
        d_rows.append((part if basis is None else part @ basis.T).ravel())
        if basis is not None:
            d_bases.append((rows.T @ part).ravel())
    return np.concatenate(d_rows), np.concatenate(d_bases)


def banded_head(
    x: Array,
    norm: tuple[Array, Array],
    bands: Sequence[Band],
    targets: Ids,
    scale: float,
    terms: tuple[float, float] = (0.0, 0.0),
) -> Tensors:
    """Return "loss", the sum of the losses of the rows of x (R, C), and the gradients of scale times it.

    They are those of all A_b ("rows") and P_b ("bases"), flat, of the LayerNorm before the projection, and of x ("dx").
    """
    h = stored(layernorm_forward(x, *norm))
    inner = [h if basis is None else stored(product(h, basis.T)) for _, basis in bands]
    scores = [product(u, rows.T) for u, (rows, _) in zip(inner, bands, strict=True)]
    logits = np.concatenate(scores, axis=1)
    d_logits = stored(cross_entropy_backward(logits, targets, scale, *terms))
    d_rows, d_bases, dh, first = [], [np.empty(0)], np.zeros_like(h), 0
    for u, (rows, basis) in zip(inner, bands, strict=True):
        of_band = d_logits[:, first : first + len(rows)]
        first += len(rows)
        d_rows.append(product(of_band.T, u).ravel())
        if basis is None:
            dh = total(dh, product(of_band, rows))
        else:
            du = stored(product(of_band, rows))
            dh = total(dh, product(du, basis))
            d_bases.append(product(du.T, h).ravel())
    dx, d_weight, d_bias = layernorm_backward(dh, x, norm[0])
    return {
        "loss": rounded_sum(cross_entropy_forward(logits, targets)),
        "rows": np.concatenate(d_rows),
        "bases": np.concatenate(d_bases),
        "lnf_weight": d_weight,
        "lnf_bias": d_bias,
        "dx": dx,
    }
