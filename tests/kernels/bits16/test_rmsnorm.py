"""RMS norm in both 16-bit formats, against float64; `tests.kernels.bits16.test_layers` explains the bounds."""

import numpy as np
from hypothesis import strategies as st

from tests import reference
from tests.kernels.bits16.formats import FLOAT, Format, Shorts
from tests.kernels.bits16.support import Pages
from tests.kernels.bits16.test_layers import EITHER, LARGEST, floats, sizes
from tests.kernels.comparison import within
from tests.kernels.support import random_shapes
from threadloom.kernels.bits16.layernorm import NormalizedRows
from threadloom.kernels.bits16.rmsnorm import (
    RmsNormGradients,
    rmsnorm_apply_transposed,
    rmsnorm_backward,
    rmsnorm_forward,
)
from threadloom.kernels.compiling.arrays import Floats

EPSILON = 1e-6


def normalise(fmt: Format, pages: Pages, x: Floats, weight: Floats, added: Floats) -> tuple[NormalizedRows, Shorts]:
    """Return the rows that the forward pass keeps of `x`, to which it adds `added`, and its output."""
    kept = NormalizedRows(pages.empty(x.shape, fmt.kind), pages.empty(x.shape[:1], np.float32))
    out = pages.empty(x.shape, fmt.kind)
    rmsnorm_forward(x, weight, EPSILON, added, kept, out)
    return kept, out


@EITHER
@random_shapes
@sizes(adds=st.booleans(), spread=st.sampled_from([1e-3, 1.0, 30.0]))
def test_forward(fmt: Format, rows: int, columns: int, at_end: bool, seed: int, adds: bool, spread: float) -> None:
    """With m = (columns / 2 + 5) u: rstd is off by m, n by m + u and a rounding, the output by that of the kept n.

    Backward recomputes the output from the transposed n, bit for bit.
    """
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    before = floats(rng, rows, columns, spread=spread)
    x, weight = pages.copy(before), pages.copy(floats(rng, columns, centre=1.0))
    added = pages.copy(floats(rng, columns)) if adds else weight[:0]
    kept, out = normalise(fmt, pages, x, weight, added)

    expected, rstd = reference.rms_normalised(before.astype(np.float64), EPSILON)
    m = (columns / 2 + 5) * FLOAT
    assert within(kept.rstd, rstd[:, 0], 1.01 * m * rstd[:, 0])
    error = (m + FLOAT) * np.abs(expected)
    n = fmt.numbers(kept.n)
    assert within(n, expected, 1.01 * error + fmt.rounding(expected))
    assert within(fmt.numbers(out), n * weight, 1.01 * FLOAT * np.abs(n * weight) + fmt.rounding(n * weight))
    np.testing.assert_array_equal(x, before + added if adds else before)
    n_t = pages.copy(kept.n.T)
    rmsnorm_apply_transposed(n_t, weight)
    np.testing.assert_array_equal(n_t, out.T)


@EITHER
@random_shapes
@sizes(columns=st.integers(2, LARGEST), accumulate=st.booleans())
def test_backward(fmt: Format, rows: int, columns: int, at_end: bool, seed: int, accumulate: bool) -> None:
    """From the kept n: dx = rstd (g - n mean(g n)) with g = dy weight, the mean off by (columns + 2) u of its sizes.

    A gradient of a parameter without elements is not computed, and nothing else depends on it. That the formula is the
    derivative of forward is checked from x: n and rstd are then off as in the test of forward.
    """
    rng = np.random.default_rng([seed, rows, columns])
    pages = Pages(at_end)
    x, weight = floats(rng, rows, columns, spread=2.0), pages.copy(floats(rng, columns, centre=1.0))
    kept, _ = normalise(fmt, pages, pages.copy(x), weight, weight[:0])
    d_out, before = pages.copy(floats(rng, rows, columns)), floats(rng, rows, columns)
    dx, dx16 = pages.copy(before), pages.empty(x.shape, fmt.kind)
    old = floats(rng, 2, columns) if accumulate else np.zeros((2, columns), np.float32)
    grads = RmsNormGradients(*(pages.copy(row) if accumulate else pages.empty((columns,), np.float32) for row in old))
    rmsnorm_backward(d_out, kept, weight, dx, dx16, grads, accumulate)
    np.testing.assert_array_equal(dx16, fmt.nearest(dx))

    n, dy, rstd = fmt.numbers(kept.n), d_out.astype(np.float64), kept.rstd.astype(np.float64)[:, None]
    g = dy * weight
    size_gn = np.abs(g * n).mean(axis=1, keepdims=True)
    through = rstd * (g - n * (g * n).mean(axis=1, keepdims=True))
    error = (columns + 8) * FLOAT * rstd * (np.abs(g) + np.abs(n) * size_gn)
    error += 2 * FLOAT * (np.abs(before) + np.abs(through))
    assert within(dx, before + through, error)
    for found, terms, start in ((grads.weight, dy * n, old[0]), (grads.added, dx.astype(np.float64), old[1])):
        rough = (rows + 2) * FLOAT * (np.abs(terms).sum(axis=0) + np.abs(start))
        assert within(found, start + terms.sum(axis=0), rough)

    true_dx, true_weight = reference.rmsnorm_backward(dy, x.astype(np.float64), weight.astype(np.float64), EPSILON)
    m = (columns / 2 + 6) * FLOAT
    e = fmt.rounding(n) + m * np.abs(n)
    error += rstd * (e * size_gn + np.abs(n) * (np.abs(g) * e).mean(axis=1, keepdims=True)) + m * np.abs(through)
    assert within(dx, before + true_dx, 1.1 * error)
    bound = (np.abs(dy) * e).sum(axis=0) + (rows + 2) * FLOAT * (np.abs(dy * n).sum(axis=0) + np.abs(old[0]))
    assert within(grads.weight, old[0] + true_weight, 1.1 * bound)

    frozen, frozen16, none = pages.copy(before), pages.empty(x.shape, fmt.kind), weight[:0]
    rmsnorm_backward(d_out, kept, weight, frozen, frozen16, RmsNormGradients(none, none), accumulate)
    np.testing.assert_array_equal(frozen, dx)
    np.testing.assert_array_equal(frozen16, dx16)
