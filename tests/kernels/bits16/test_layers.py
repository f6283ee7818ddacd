"""The passes between the products of training in 16 bits, in both formats, against float64.

Every bound is made of the roundings: an operation in float32 is off by at most u = 2**-24 of its result, and a sum of
n terms in any order by (n + 1) u of the sum of their sizes, since the compiler may reorder it. A number that is stored
in 16 bits is off by `Format.rounding` besides. Where a pass starts from stored numbers, so does the expectation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tests import reference
from tests.error_bounds import FLOAT64
from tests.kernels.bits16.formats import BF16, FLOAT, FORMATS, Format, Shorts, pack
from tests.kernels.bits16.support import Pages
from tests.kernels.comparison import within
from tests.kernels.support import flat_ids, random_shapes, with_ignored
from tests.reference import Array
from threadloom.kernels.bits16.cross_entropy import cross_entropy_backward, objective_backward
from threadloom.kernels.bits16.embedding import embedding_forward, token_embedding_forward
from threadloom.kernels.bits16.gelu import gelu_backward, gelu_forward
from threadloom.kernels.bits16.layernorm import (
    LayerNormGradients,
    NormalizedRows,
    layernorm_apply_transposed,
    layernorm_backward,
    layernorm_forward,
)
from threadloom.kernels.bits16.linear import linear_backward_bias
from threadloom.kernels.common import IGNORED_TARGET, LossTerms
from threadloom.kernels.common.documents import NO_BORDERS
from threadloom.kernels.common.layernorm import Affine
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.jit import JIT_ENABLED

LARGEST = 140 if JIT_ENABLED else 40
MOST_ROWS = 45 if JIT_ENABLED else 9
EITHER = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)


def sizes(**more: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Return the decorator that tries rows, columns, arrays that end or begin at a guard page, and `more`."""
    chosen = {
        "rows": st.integers(1, MOST_ROWS),
        "columns": st.integers(1, LARGEST),
        "at_end": st.booleans(),
        "seed": st.integers(0, 99),
    }
    return given(**(chosen | more))


def floats(rng: np.random.Generator, *shape: int, spread: float = 1.0, centre: float = 0.0) -> Floats:
    return (centre + spread * rng.standard_normal(shape)).astype(np.float32)


# --- LayerNorm --------------------------------------------------------------------------------------------------------


def normalise(fmt: Format, pages: Pages, x: Floats, weight: Floats, bias: Floats) -> tuple[Shorts, Shorts, Floats]:
    """Return what forward makes of `x`, which stays as it is: the kept rows, the output, and rstd."""
    normed, out = pages.empty(x.shape, fmt.kind), pages.empty(x.shape, fmt.kind)
    rstd = pages.empty(x.shape[:1], np.float32)
    layernorm_forward(pages.copy(x), Affine(weight, bias), weight[:0], NormalizedRows(normed, rstd), out)
    return normed, out, rstd


@EITHER
@random_shapes
@sizes(adds=st.booleans())
def test_layernorm_forward(fmt: Format, rows: int, columns: int, at_end: bool, seed: int, adds: bool) -> None:
    """The kept rows are off by a rounding and by float32's; the output by a rounding from what the kept rows give.

    With m = (columns + 16) u: the mean is off by m max|x|, the sum of squares and with it rstd by m of itself (an error
    of the mean does not count to first order, as the centred numbers add up to 0), and so n = (x - mean) rstd by
    m (|n| + rstd max|x|).
    """
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    before = floats(rng, rows, columns, spread=float(rng.uniform(0.2, 30.0)), centre=float(rng.normal()))
    x = pages.copy(before)
    weight, bias = pages.copy(floats(rng, columns, centre=1.0)), pages.copy(floats(rng, columns))
    added = pages.copy(floats(rng, columns)) if adds else weight[:0]
    normed, out = pages.empty(x.shape, fmt.kind), pages.empty(x.shape, fmt.kind)
    rstd = pages.empty((rows,), np.float32)
    layernorm_forward(x, Affine(weight, bias), added, NormalizedRows(normed, rstd), out)

    exact = before.astype(np.float64)
    mean, expected_rstd = reference.layernorm_statistics(exact)
    expected = (exact - mean[:, None]) * expected_rstd[:, None]
    relative = (columns + 16) * FLOAT
    largest = np.abs(exact).max(axis=1)
    # Rows of one number have a variance of 0, and of nothing but rounding: epsilon bounds what it is divided by.
    assert within(rstd, expected_rstd, expected_rstd * (relative + (relative * largest * expected_rstd) ** 2))
    error = relative * (np.abs(expected) + (expected_rstd * largest)[:, None])
    kept = fmt.numbers(normed)
    assert within(kept, expected, (1 + fmt.unit) * error + fmt.rounding(expected))

    scaled = kept * weight
    error = 3 * FLOAT * (np.abs(scaled) + np.abs(bias))
    assert within(fmt.numbers(out), scaled + bias, 1.01 * error + fmt.rounding(scaled + bias))
    np.testing.assert_array_equal(x, before + added if adds else before)


@EITHER
@random_shapes
@sizes()
def test_backward_recomputes_the_output_of_forward(
    fmt: Format, rows: int, columns: int, at_end: bool, seed: int
) -> None:
    """From the kept rows, transposed: bit for bit, however the loops over rows and over columns are cut."""
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    weight, bias = pages.copy(floats(rng, columns, centre=1.0)), pages.copy(floats(rng, columns))
    normed, out, _ = normalise(fmt, pages, floats(rng, rows, columns, spread=3.0), weight, bias)
    n_t = pages.copy(normed.T)
    layernorm_apply_transposed(n_t, Affine(weight, bias))
    np.testing.assert_array_equal(n_t, out.T)


@EITHER
@random_shapes
@sizes(columns=st.integers(2, LARGEST), accumulate=st.booleans())
def test_layernorm_backward(fmt: Format, rows: int, columns: int, at_end: bool, seed: int, accumulate: bool) -> None:
    """From the kept n as it is, float32's roundings alone; from the input itself, n's rounding besides.

    With g = dy weight: dx = rstd (g - mean(g) - n mean(g n)), each mean off by (columns + 1) u of the mean of sizes.
    If n is off by e (at most `unit` of itself), dx is off by rstd (e mean|g n| + |n| mean|g e|) = 2 unit rstd |n|
    mean|g n|, and a column's sum of dy n by the sum of |dy| e.
    """
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    x = floats(rng, rows, columns, spread=2.0)
    weight, bias = pages.copy(floats(rng, columns, centre=1.0)), pages.copy(floats(rng, columns))
    normed, _, rstd = normalise(fmt, pages, x, weight, bias)
    d_out = pages.copy(floats(rng, rows, columns))
    before = floats(rng, rows, columns)
    dx, dx16 = pages.copy(before), pages.empty(x.shape, fmt.kind)
    old = floats(rng, 3, columns) if accumulate else np.zeros((3, columns), np.float32)
    d_weight, d_bias, d_added = (pages.copy(row) if accumulate else pages.empty((columns,), np.float32) for row in old)
    grads = LayerNormGradients(d_weight, d_bias, d_added)
    layernorm_backward(d_out, NormalizedRows(normed, rstd), weight, dx, dx16, grads, accumulate)

    n, dy, scale = fmt.numbers(normed), d_out.astype(np.float64), rstd.astype(np.float64)[:, None]
    g = dy * weight
    size_g, size_gn = np.abs(g).mean(axis=1, keepdims=True), np.abs(g * n).mean(axis=1, keepdims=True)
    through = scale * (g - g.mean(axis=1, keepdims=True) - n * (g * n).mean(axis=1, keepdims=True))
    error = (columns + 8) * FLOAT * scale * (np.abs(g) + size_g + np.abs(n) * size_gn)
    error += 2 * FLOAT * (np.abs(before) + np.abs(through))
    assert within(dx, before + through, error)
    np.testing.assert_array_equal(dx16, fmt.nearest(dx))

    for found, terms, start in ((d_weight, dy * n, old[0]), (d_bias, dy, old[1]), (d_added, dx, old[2])):
        rough = (rows + 2) * FLOAT * (np.abs(terms).sum(axis=0) + np.abs(start))
        assert within(found, start + terms.sum(axis=0), rough)

    # From x: n is off by e, rstd relatively by m as in the test of forward, and 1.1 is for what is of second order.
    true_dx, true_weight, _ = reference.layernorm_backward(dy, x.astype(np.float64), weight.astype(np.float64))
    m = (columns + 16) * FLOAT
    largest = (np.abs(x).max(axis=1, keepdims=True)) * scale
    e = fmt.rounding(n) + m * (np.abs(n) + largest)
    error += scale * (e * size_gn + np.abs(n) * (np.abs(g) * e).mean(axis=1, keepdims=True))
    error += (m + (m * largest) ** 2) * np.abs(through)
    assert within(dx, before + true_dx, 1.1 * error)
    bound = (np.abs(dy) * e).sum(axis=0) + (rows + 2) * FLOAT * (np.abs(dy * n).sum(axis=0) + np.abs(old[0]))
    assert within(d_weight, old[0] + true_weight, 1.1 * bound)


# --- GELU and biases --------------------------------------------------------------------------------------------------


def gelu_parts(v: Array) -> tuple[Array, Array, Array, Array]:
    """Return sigmoid(2u), the GELU, its derivative's second factor (2u)', and how far float32 may be off at s.

    An argument a of the exponential is off by 3 u |a|, and so is e**a, relatively; exp32 itself by 2 u; the rest by 3.
    Below -87 the sigmoid is 0 instead of less than 2**-125.
    """
    a = 1.5957691216057308 * (v + 0.044715 * v**3)
    with np.errstate(over="ignore"):
        s = 1.0 / (1.0 + np.exp(-a))
    slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * v**2)
    return s, v * s, slope, (6 + 4 * np.minimum(np.abs(a), 90.0)) * FLOAT * s + 2.0**-125


@EITHER
@random_shapes
@sizes(accumulate=st.booleans(), spread=st.sampled_from([0.1, 1.0, 6.0]))
def test_gelu(fmt: Format, rows: int, columns: int, at_end: bool, seed: int, accumulate: bool, spread: float) -> None:
    """Forward, and backward with the sums of its columns, which are made before the gradient is rounded."""
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    x, d = (pages.copy(fmt.random(rng, rows, columns, spread=s)) for s in (spread, 1.0))
    kept, dy = x.copy(), fmt.numbers(d)
    out, again = pages.empty(x.shape, fmt.kind), pages.empty(x.shape, fmt.kind)
    old = floats(rng, columns) if accumulate else np.zeros(columns, np.float32)
    d_bias = pages.copy(old) if accumulate else pages.empty((columns,), np.float32)
    gelu_forward(x, out)
    gelu_backward(x, d, again, d_bias, accumulate)
    np.testing.assert_array_equal(x, kept)

    v = fmt.numbers(x)
    s, y, slope, error_s = gelu_parts(v)
    error_64 = error_s * FLOAT64 / FLOAT + 4 * FLOAT64  # of s here, and of 1 + tanh in the reference
    assert within(y, reference.gelu_forward(v), 2 * np.abs(v) * error_64)
    for found in (out, again):
        bound = np.abs(v) * error_s + 2 * FLOAT * np.abs(y)
        assert within(fmt.numbers(found), y, 1.01 * bound + fmt.rounding(y))

    expected = dy * (s + y * (1.0 - s) * slope)
    assert within(expected, reference.gelu_backward(dy, v), 4 * np.abs(dy) * (1.0 + np.abs(v) * slope) * error_64)
    # g = dy (s + y (1 - s) (2u)'): both s and 1 - s are off by error_s, and 1 - s by its own rounding, u.
    second = np.abs(y) * (1.0 - s) * slope
    error_y = np.abs(v) * error_s + 2 * FLOAT * np.abs(y)
    error = error_s + error_y * (1.0 - s) * slope + np.abs(y) * slope * (error_s + FLOAT) + 8 * FLOAT * (s + second)
    error *= np.abs(dy)
    assert within(fmt.numbers(d), expected, 1.01 * error + fmt.rounding(expected))
    total = old + expected.sum(axis=0)
    rough = (rows + 2) * FLOAT * (np.abs(expected).sum(axis=0) + np.abs(old))
    assert within(d_bias, total, error.sum(axis=0) + 1.01 * rough)


@EITHER
@random_shapes
@sizes(accumulate=st.booleans())
def test_bias_backward(fmt: Format, rows: int, columns: int, at_end: bool, seed: int, accumulate: bool) -> None:
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    d = pages.copy(fmt.random(rng, rows, columns))
    old = floats(rng, columns) if accumulate else np.zeros(columns, np.float32)
    d_bias = pages.copy(old) if accumulate else pages.empty((columns,), np.float32)
    linear_backward_bias(d, d_bias, accumulate)
    exact = fmt.numbers(d)
    bound = (rows + 2) * FLOAT * (np.abs(exact).sum(axis=0) + np.abs(old))
    assert within(d_bias, old + exact.sum(axis=0), bound)


# --- the two ends -----------------------------------------------------------------------------------------------------


@EITHER
@random_shapes
@sizes(scale=st.sampled_from([1.0, 1 / 37, 1024 / 37, 2.0**-14]), spread=st.sampled_from([0.5, 4.0, 30.0]))
def test_cross_entropy(
    fmt: Format, rows: int, columns: int, at_end: bool, seed: int, scale: float, spread: float
) -> None:
    """With z = logit - largest, e**z is off by (2.3|z| + 4) u of itself, by its argument's roundings, and their sum by
    V + 4 + 2.3 times the mean of |z|: the loss of a row by that sum, a share of the gradient by both of it, of which
    the target's then loses the scale.
    """
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    logits = pages.copy(floats(rng, rows, columns, spread=spread))
    targets = rng.integers(0, columns, rows).astype(np.int32)
    d_logits = pages.empty(logits.shape, fmt.kind)
    exact = logits.astype(np.float64)
    loss = cross_entropy_backward(logits, targets, scale, d_logits)

    depth = exact.max(axis=1, keepdims=True) - exact
    relative = (columns + 8 + 2 * np.minimum(depth, 90.0).max(axis=1, keepdims=True)) * FLOAT
    assert abs(loss - reference.cross_entropy_forward(exact, targets).sum()) <= 1.01 * relative.sum()
    expected = reference.cross_entropy_backward(exact, targets, scale)
    shares = reference.cross_entropy_backward(exact, targets, scale)
    shares[np.arange(rows), targets] += scale
    error = 2 * relative * shares + 2 * FLOAT * np.abs(expected) + scale * 2.0**-125
    error[np.arange(rows), targets] += 2 * FLOAT * scale
    assert within(fmt.numbers(d_logits), expected, 1.01 * error + fmt.rounding(expected))


@EITHER
@random_shapes
@sizes(smoothing=st.sampled_from([0.0, 0.2]), z_loss=st.sampled_from([0.0, 1e-2]))
def test_label_smoothing_and_z_loss(
    fmt: Format, rows: int, columns: int, at_end: bool, seed: int, smoothing: float, z_loss: float
) -> None:
    """The gradient is float32's, rounded once: what that is off by, `tests.kernels.float32` says."""
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    logits, targets = pages.copy(floats(rng, rows, columns)), with_ignored(rng.integers(0, columns, rows))
    d_logits = pages.empty(logits.shape, fmt.kind)
    exact, terms = logits.astype(np.float64), LossTerms(smoothing, z_loss, np.zeros(2))
    loss = objective_backward(logits, flat_ids(targets), 0.25, terms, d_logits)
    assert loss == pytest.approx(reference.cross_entropy_forward(exact, targets).sum(), rel=1e-5, abs=1e-5)
    expected = reference.cross_entropy_backward(exact, targets, 0.25, smoothing, z_loss)
    assert within(fmt.numbers(d_logits), expected, fmt.rounding(1.01 * expected) + 1e-6)
    added = reference.loss_terms(exact, targets, smoothing, z_loss)
    np.testing.assert_allclose(terms.sums, added, rtol=1e-5, atol=1e-5 * rows)


@EITHER
def test_rows_that_do_not_count_have_neither_loss_nor_gradient(fmt: Format) -> None:
    logits = floats(np.random.default_rng(1), 5, 301)
    logits[0], logits[3] = np.nan, np.inf
    targets = np.array([IGNORED_TARGET, 300, 0, IGNORED_TARGET, 7], np.int32)
    counted = targets != IGNORED_TARGET
    alone, d_logits = logits[counted], np.full(logits.shape, 1, fmt.kind)
    d_alone = d_logits[counted]
    loss = cross_entropy_backward(logits, targets, 0.25, d_logits)
    assert loss == cross_entropy_backward(alone, targets[counted], 0.25, d_alone)
    np.testing.assert_array_equal(d_logits[counted], d_alone)
    assert not d_logits[~counted].any()


def test_a_loss_that_is_not_a_number_is_seen() -> None:
    for fmt in FORMATS:
        logits = np.zeros((2, 5), np.float32)
        logits[1, 3] = np.nan
        d_logits = np.zeros((2, 5), fmt.kind)
        assert np.isnan(cross_entropy_backward(logits, np.zeros(2, np.int32), 1.0, d_logits))
        found = fmt.numbers(d_logits)
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).all()


@EITHER
@random_shapes
@sizes(tokens=st.integers(1, 9), vocabulary=st.integers(1, 90), spare=st.integers(0, 3))
def test_embedding_forward(
    fmt: Format, rows: int, columns: int, at_end: bool, seed: int, tokens: int, vocabulary: int, spare: int
) -> None:
    """One addition of a stored number and a float32 one: NumPy's has the same bits."""
    rng = np.random.default_rng([seed, rows, columns, vocabulary])
    pages = Pages(at_end)
    wte, wpe = fmt.random(rng, vocabulary, columns), pages.copy(floats(rng, tokens + spare, columns))
    ids = rng.integers(0, vocabulary, rows * tokens).astype(np.int32)
    ids[[0, -1]] = 0, vocabulary - 1
    out = pages.empty((ids.size, columns), np.float32)
    packed = pages.copy(pack(wte) if fmt is BF16 else wte)
    embedding_forward(packed, wpe, ids, tokens, NO_BORDERS, out)
    expected = fmt.numbers(wte)[ids].astype(np.float32) + np.tile(wpe[:tokens], (rows, 1))
    np.testing.assert_array_equal(out, expected)
    token_embedding_forward(packed, ids, out)
    np.testing.assert_array_equal(out, fmt.numbers(wte)[ids])
