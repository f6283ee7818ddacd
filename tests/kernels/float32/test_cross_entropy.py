"""Softmax cross-entropy and its gradient in the place of the logits."""

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from tests import reference
from tests.error_bounds import allowed, distances, gamma
from tests.kernels.comparison import assert_close
from tests.kernels.support import Guarded, flat_ids, float32_numbers, random_shapes, with_ignored
from tests.reference import Tensors
from threadloom.kernels.common import LossTerms
from threadloom.kernels.common.cross_entropy import IGNORED_TARGET, cross_entropy_forward
from threadloom.kernels.float32.cross_entropy import cross_entropy_backward, objective_backward


@random_shapes
@example(rows=1, vocabulary=2, spread=1.0)
@example(rows=2, vocabulary=1, spread=1.0)
@example(rows=3, vocabulary=5003, spread=3.0)
@given(rows=st.integers(1, 20), vocabulary=st.integers(2, 300), spread=st.sampled_from([0.01, 1.0, 8.0]))
def test_loss_and_gradient(rows: int, vocabulary: int, spread: float) -> None:
    rng = np.random.default_rng([rows, vocabulary])
    memory = Guarded()
    in_logits = memory.copy(spread * float32_numbers(rng, rows, vocabulary))
    logits = in_logits.astype(np.float64)
    targets = rng.integers(0, vocabulary, rows)
    targets[0], targets[-1] = 0, vocabulary - 1

    def results() -> Tensors:
        losses = reference.cross_entropy_forward(logits, targets)
        return {"loss": losses.sum(), "d": reference.cross_entropy_backward(logits, targets, 0.125)}

    exact, bound = results(), distances(results)
    expected = exact["loss"]
    loss = cross_entropy_forward(in_logits, flat_ids(targets))
    np.testing.assert_array_equal(in_logits, logits)
    assert abs(loss - expected) <= bound["loss"]
    loss = cross_entropy_backward(in_logits, flat_ids(targets), 0.125)
    assert abs(loss - expected) <= bound["loss"]
    assert np.linalg.norm(in_logits - exact["d"]) <= bound["d"]
    # The right token's is a difference from 1. The others are compared apart, relative to their own size.
    wrong = np.arange(vocabulary) != targets[:, None]
    bounds = allowed(lambda: {"d": results()["d"][wrong]})
    assert_close(in_logits[wrong], exact["d"][wrong], bounds["d"], "wrong tokens")
    memory.check()


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_what_all_logits_share_does_not_matter(shift: float) -> None:
    logits = np.full((1, 10), shift, np.float32)
    # The sum of ten terms, which are exactly 1, is exact; the logarithm, a division and a difference are not.
    assert cross_entropy_forward(logits, np.array([3], np.int32)) == pytest.approx(np.log(10.0), rel=gamma(12))
    assert cross_entropy_backward(logits, np.array([3], np.int32), 1.0) == pytest.approx(np.log(10.0), rel=gamma(12))
    np.testing.assert_allclose(logits[0], 0.1 - (np.arange(10) == 3), rtol=gamma(12))


def test_logits_far_apart() -> None:
    logits = np.array([[0.0, 500.0, -500.0]], np.float32)
    assert cross_entropy_forward(logits, np.array([2], np.int32)) == 1000.0
    assert cross_entropy_backward(logits, np.array([1], np.int32), 1.0) == 0.0
    np.testing.assert_array_equal(logits, 0.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns where the compiler is off
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 20, 40])
def test_nan_and_infinity_show_in_the_loss_and_the_gradient(value: float, position: int) -> None:
    """The processor makes negative NaNs; both signs count."""
    logits = np.random.default_rng(0).standard_normal((2, 41), np.float32)
    logits[1, position] = value
    targets = np.array([3, 4], np.int32)
    assert np.isnan(cross_entropy_forward(logits, targets))
    assert np.isnan(cross_entropy_backward(logits, targets, 1.0))
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all() or value == np.inf
    assert np.isnan(logits[1]).any()


def test_rows_that_do_not_count_have_neither_loss_nor_gradient() -> None:
    """They may have any logits; the other rows have the bits that they have alone."""
    logits = np.random.default_rng(1).standard_normal((5, 301), np.float32)
    logits[0], logits[3] = np.nan, np.inf
    targets = np.array([IGNORED_TARGET, 300, 0, IGNORED_TARGET, 7], np.int32)
    counted = targets != IGNORED_TARGET
    alone = logits[counted]
    assert cross_entropy_forward(logits, targets) == cross_entropy_forward(alone, targets[counted])
    assert cross_entropy_backward(logits, targets, 0.25) == cross_entropy_backward(alone, targets[counted], 0.25)
    np.testing.assert_array_equal(logits[counted], alone)
    assert not logits[~counted].any()


@random_shapes
@example(rows=3, vocabulary=5003, smoothing=0.1, z_loss=1e-2)
@given(
    rows=st.integers(1, 20),
    vocabulary=st.integers(2, 300),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.3]),
)
def test_label_smoothing_and_z_loss(rows: int, vocabulary: int, smoothing: float, z_loss: float) -> None:
    rng = np.random.default_rng([rows, vocabulary, 7])
    memory = Guarded()
    in_logits = memory.copy(3.0 * float32_numbers(rng, rows, vocabulary))
    logits, targets = in_logits.astype(np.float64), with_ignored(rng.integers(0, vocabulary, rows))

    def results() -> Tensors:
        return {
            "loss": reference.cross_entropy_forward(logits, targets).sum(),
            "d": reference.cross_entropy_backward(logits, targets, 0.125, smoothing, z_loss),
        }

    exact, bound = results(), distances(results)
    terms = LossTerms(smoothing, z_loss, np.zeros(2))
    loss = objective_backward(in_logits, flat_ids(targets), 0.125, terms)
    assert abs(loss - exact["loss"]) <= bound["loss"]
    assert np.linalg.norm(in_logits - exact["d"]) <= bound["d"]
    expected = reference.loss_terms(logits, targets, smoothing, z_loss)
    np.testing.assert_allclose(terms.sums, expected, rtol=1e-5, atol=1e-5 * rows * smoothing)
    memory.check()


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_that_of_pytorch(smoothing: float) -> None:
    """With targets that are ignored; PyTorch has no z-loss, whose formula stands here."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    logits, targets = rng.standard_normal((9, 33)), with_ignored(rng.integers(0, 33, 9))
    theirs = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(targets)
    smoothed = torch.nn.functional.cross_entropy(
        theirs, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    squares = 0.02 * (torch.logsumexp(theirs, dim=1) ** 2)[labels >= 0].sum()
    (smoothed + squares).backward()
    ours, terms = logits.astype(np.float32), LossTerms(smoothing, 0.02, np.zeros(2))
    loss = objective_backward(ours, flat_ids(targets), 1.0, terms)
    assert loss + terms.sums[0] == pytest.approx(smoothed.item(), rel=1e-6)
    assert terms.sums[1] == pytest.approx(squares.item(), rel=1e-6)
    np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-5, atol=1e-6)
