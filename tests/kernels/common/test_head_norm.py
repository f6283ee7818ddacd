"""RMS norm of the queries and keys of each head, in every number format, against float64."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.kernels.bits16.formats import EVERY_FORMAT, FLOAT, Format
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import within
from tests.kernels.support import random_shapes
from tests.reference import Array
from threadloom.kernels.common.head_norm import HeadNormWeights, head_norm_backward, head_norm_forward
from threadloom.kernels.common.tensors import HeadCounts
from threadloom.kernels.compiling.arrays import Floats

EACH_FORMAT = pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)
CASES = {
    "rows": st.integers(1, 9),
    "heads": st.sampled_from([HeadCounts(1, 1), HeadCounts(3, 1), HeadCounts(4, 2)]),
    "size": st.sampled_from([1, 7, 33, 65, 128]),
    "spread": st.sampled_from([1.0, 1e-3, 100.0]),  # 1e-3: epsilon is as large as the mean of squares
    "at_end": st.booleans(),
}
EPSILON = 1e-6


def make_weights(rng: np.random.Generator, pages: Pages, size: int) -> HeadNormWeights:
    return HeadNormWeights(*(pages.copy((1.0 + rng.standard_normal(size)).astype(np.float32)) for _ in range(2)))


def per_head(weights: HeadNormWeights, heads: HeadCounts) -> Array:
    """Return the weights of all heads, (H + K, D)."""
    return np.stack([weights.query] * heads.query + [weights.key] * heads.key_value).astype(np.float64)


@EACH_FORMAT
@random_shapes
@given(**CASES)
def test_forward(fmt: Format, rows: int, heads: HeadCounts, size: int, spread: float, at_end: bool) -> None:
    """The sum of squares is off by (D + 1) u of itself, rstd by half of that and 4 u, the result by 2 u more.

    Epsilon is rounded to float32 once, which the 4 u include.
    """
    rng = np.random.default_rng([rows, size])
    pages, normed = Pages(at_end), heads.query + heads.key_value
    before = fmt.random(rng, rows, (normed + heads.key_value) * size, spread=spread)
    qkv, raw = pages.copy(before), pages.empty((rows, normed * size), fmt.kind)
    weights = make_weights(rng, pages, size)
    head_norm_forward(qkv, raw, weights, EPSILON, heads, size)
    np.testing.assert_array_equal(raw, before[:, : normed * size])
    np.testing.assert_array_equal(qkv[:, normed * size :], before[:, normed * size :])
    x = fmt.numbers(raw).reshape(rows, normed, size)
    expected = reference.head_norm_forward(x, per_head(weights, heads), EPSILON)
    error = (size / 2 + 7) * FLOAT * np.abs(expected)
    found = fmt.numbers(qkv)[:, : normed * size].reshape(expected.shape)
    assert within(found, expected, 1.01 * error + fmt.rounding(expected))


@EACH_FORMAT
@pytest.mark.parametrize("accumulate", [False, True])
@random_shapes
@given(**CASES)
def test_backward(
    fmt: Format, accumulate: bool, rows: int, heads: HeadCounts, size: int, spread: float, at_end: bool
) -> None:
    """With g = d weight: dx = rstd (g - n mean(g n)), where rstd and n are off by m = (D / 2 + 5) u.

    The terms of the mean are off by m + 3 u, their sum by (D + 1) u more; n counts once more, and rstd in both terms.
    """
    rng = np.random.default_rng([rows, size])
    pages, normed = Pages(at_end), heads.query + heads.key_value
    raw = pages.copy(fmt.random(rng, rows, normed * size, spread=spread))
    before = fmt.random(rng, rows, (normed + heads.key_value) * size)
    d_qkv, weights = pages.copy(before), make_weights(rng, pages, size)
    old = rng.standard_normal((2, size)).astype(np.float32) if accumulate else np.zeros((2, size), np.float32)
    grads = HeadNormWeights(*(pages.copy(row) if accumulate else pages.empty((size,), np.float32) for row in old))
    head_norm_backward(d_qkv, raw, weights, EPSILON, heads, size, grads, accumulate)

    x = fmt.numbers(raw).reshape(rows, normed, size)
    dy = fmt.numbers(before)[:, : normed * size].reshape(x.shape)
    gain, m = per_head(weights, heads), (size / 2 + 5) * FLOAT
    n, rstd = reference.rms_normalised(x, EPSILON)
    g, size_gn = np.abs(dy * gain), np.abs(dy * gain * n).mean(axis=2, keepdims=True)
    expected, _ = reference.head_norm_backward(dy, x, gain, EPSILON)
    error = rstd * ((m + 3 * FLOAT) * g + (3 * m + (size + 8) * FLOAT) * np.abs(n) * size_gn)
    found = fmt.numbers(d_qkv)[:, : normed * size].reshape(x.shape)
    assert within(found, expected, 1.01 * error + fmt.rounding(expected))
    np.testing.assert_array_equal(d_qkv[:, normed * size :], before[:, normed * size :])

    per_row = np.split(dy * n, [heads.query], axis=1)
    for gradient, start, terms in zip(grads, old, (part.reshape(-1, size) for part in per_row), strict=True):
        rough = np.abs(terms).sum(axis=0) + np.abs(start)
        assert within(gradient, start + terms.sum(axis=0), 1.01 * (m + (len(terms) + 3) * FLOAT) * rough)


@EACH_FORMAT
def test_gradients_without_elements_are_not_computed(fmt: Format) -> None:
    rng = np.random.default_rng(0)
    heads, size, none = HeadCounts(2, 1), 9, np.zeros(0, np.float32)
    raw, d = fmt.random(rng, 5, 27), fmt.random(rng, 5, 36)
    pages = Pages(True)
    weights = make_weights(rng, pages, size)

    def run(grads: HeadNormWeights) -> Floats:
        result = d.copy()
        head_norm_backward(result, raw, weights, EPSILON, heads, size, grads, False)
        return result

    both = HeadNormWeights(np.zeros(size, np.float32), np.zeros(size, np.float32))
    key = np.zeros(size, np.float32)
    np.testing.assert_array_equal(run(HeadNormWeights(none, key)), run(both))
    np.testing.assert_array_equal(key, both.key)


@EACH_FORMAT
def test_nan_stays_in_its_head(fmt: Format) -> None:
    qkv = fmt.nearest(np.tile([1.0, -2.0, 4.0], (2, 4)))
    qkv[1, 4] = fmt.nan
    raw = np.zeros((2, 9), fmt.kind)
    ones = np.ones(3, np.float32)
    head_norm_forward(qkv, raw, HeadNormWeights(ones, ones), EPSILON, HeadCounts(2, 1), 3)
    nan = np.zeros((2, 12), bool)
    nan[1, 3:6] = True
    np.testing.assert_array_equal(np.isnan(fmt.numbers(qkv)), nan)
