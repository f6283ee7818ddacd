"""The softmax over sums of residues: sizes, and logits whose exponentials vanish, against float64."""

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import SMALLEST, gamma
from tests.kernels.support import flat_ids, with_ignored
from tests.reference import Array
from tests.reference.residues import residue_matrix
from threadloom.kernels.common import NO_TERMS, LossTerms, residue_cross_entropy, residue_losses, residues_of

SIZES = [
    (100, (9, 11), 0), (100, (9, 11), 7), (30, (2, 3, 5), 0), (50, (61,), 4), (700, (23, 29, 31), 90),
    (7, (3, 5), 7), (9, (1, 9), 0), (500, (200, 3), 0),
]  # fmt: skip
EXP32 = 2.0**-22
"""Relative error of an exponential, `tests.kernels.simd` holds it."""


def exact(scores: Array, targets: "np.ndarray[tuple[int], np.dtype[np.int64]]", matrix: Array) -> tuple[Array, Array]:
    """Return the losses, and the gradient of their sum, of columns `scores` (n, P)."""
    logits = scores @ matrix.T
    shifted = logits - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    probabilities, losses = np.exp(shifted) / sums, np.log(sums[:, 0]) - shifted[rows, targets]
    probabilities[rows, targets] -= 1.0
    return losses, probabilities @ matrix


@pytest.mark.parametrize("spread", [1.0, 30.0, 3000.0])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_losses_and_gradients_equal_those_of_all_logits(sizes: tuple[int, tuple[int, ...], int], spread: float) -> None:
    """With a large spread the largest sum often belongs to no token, and every product of factors vanishes."""
    rng, (vocabulary, moduli, own) = np.random.default_rng(4), sizes
    matrix, residues = residue_matrix(*sizes), residues_of(*sizes)
    scores = (spread * rng.standard_normal((5, own + sum(moduli)))).astype(np.float32)
    targets, space = rng.integers(0, vocabulary, 5), np.full(residues.space, np.nan, np.float32)
    losses, expected = exact(scores.astype(np.float64), targets, matrix)
    # A logit is a sum of k numbers, each rounded: so far off is the exponent, and the loss.
    off = gamma(2 * len(moduli) + 2) * (np.abs(scores.astype(np.float64)) @ np.abs(matrix).T).max()
    of_sums = gamma(vocabulary) + (len(moduli) + 1) * (EXP32 + off)
    found, total = scores.copy(), 0.0
    for row, target, loss in zip(found, targets, losses, strict=True):
        one = residue_cross_entropy(row[None], flat_ids(target[None]), 1.0, NO_TERMS, residues, space)
        assert abs(one - loss) <= of_sums + 2 * off
        total += one
    if off < 1e-3:  # else a probability may be that of another token
        assert (np.abs(found - expected) <= 4 * of_sums + vocabulary * SMALLEST).all()
    assert residue_losses(scores.copy(), flat_ids(targets), residues, space) == total
    together = residue_cross_entropy(scores, flat_ids(targets), 1.0, NO_TERMS, residues, space)
    np.testing.assert_array_equal(scores, found)
    assert together == total


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_terms_of_the_loss_equal_those_of_all_logits(sizes: tuple[int, tuple[int, ...], int]) -> None:
    """Label smoothing and the z-loss, by the formulas for logits (V,)."""
    rng, (vocabulary, moduli, own) = np.random.default_rng(5), sizes
    matrix, residues, smoothing, z_loss, scale = residue_matrix(*sizes), residues_of(*sizes), 0.2, 0.03, 0.25
    scores = rng.standard_normal((6, own + sum(moduli))).astype(np.float32)
    targets, space = with_ignored(rng.integers(0, vocabulary, 6)), np.full(residues.space, np.nan, np.float32)
    logits = scores.astype(np.float64) @ matrix.T
    terms = LossTerms(smoothing, z_loss, np.zeros(2))
    gradients = reference.cross_entropy_backward(logits, targets, scale, smoothing, z_loss) @ matrix
    expected = reference.loss_terms(logits, targets, smoothing, z_loss)
    found = scores.copy()
    loss = residue_cross_entropy(found, flat_ids(targets), scale, terms, residues, space)
    assert loss == residue_cross_entropy(scores.copy(), flat_ids(targets), scale, NO_TERMS, residues, space)
    of_logits = gamma(2 * len(moduli) + 2) * (np.abs(scores.astype(np.float64)) @ np.abs(matrix).T).max()
    off = gamma(vocabulary) + (len(moduli) + 2) * (EXP32 + of_logits)
    np.testing.assert_allclose(terms.sums, expected, rtol=0, atol=6 * off * (1 + np.abs(logits).max()))
    assert (np.abs(found - gradients) <= 4 * off * scale).all()
    assert not found[targets < 0].any()
