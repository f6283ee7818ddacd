"""Rounding to a grid under a metric, entropy and steps, factors of low rank."""

import numpy as np
import pytest
from numpy.typing import NDArray

from threadloom.stages.lattice import (
    Basis,
    Grid,
    LatticeError,
    Rounding,
    best_scale,
    entropy_bits,
    error_bound,
    low_rank,
    measured_scale,
    round_to_grid,
    step_of_bits,
    weighted_error,
)

Doubles = NDArray[np.float64]
C = 24


def skewed_metric(decay: float) -> Doubles:
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((C, C)))[0]
    return np.asarray((rotation * np.exp(-np.arange(C) / decay)) @ rotation.T)


def rows(count: int = 300) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, C), np.float32)


def gptq(w: NDArray[np.float32], metric: Doubles, step: float, order: NDArray[np.intp]) -> NDArray[np.int64]:
    """Round as GPTQ does (Frantar et al., 2022): the error of a column is spread over those that are left."""
    rest = w.astype(np.float64)[:, order] / step
    left = np.linalg.inv(metric[np.ix_(order, order)])
    z = np.zeros(w.shape, np.int64)
    for i in range(C):
        z[:, i] = np.rint(rest[:, i])
        error = (rest[:, i] - z[:, i]) / left[i, i]
        rest[:, i + 1 :] -= error[:, None] * left[i, i + 1 :]
        left = left - np.outer(left[:, i], left[i]) / left[i, i]
    result = np.empty_like(z)
    result[:, order] = z
    return result


def test_gptq_is_babai_and_reduction_lowers_bound_and_error() -> None:
    """The bound holds for each way by Babai; on a skewed metric every step from plain rounding to LLL gains."""
    metric, w, step = skewed_metric(3.0), rows(), 0.3
    errors, found = {}, {}
    for rounding in Rounding:
        found[rounding] = round_to_grid(w, metric, step, rounding)
        errors[rounding] = weighted_error(w, (found[rounding] * step).astype(np.float32), metric)
        if rounding is not Rounding.NEAREST:
            away = w - found[rounding] * step
            of_rows = np.einsum("ij,jk,ik->i", away, metric, away)
            assert of_rows.max() <= error_bound(metric, step, rounding) * (1 + 1e-9)
    np.testing.assert_array_equal(found[Rounding.GPTQ], gptq(w, metric, step, np.arange(C)))
    order = np.argsort(-np.diag(metric))
    np.testing.assert_array_equal(found[Rounding.SORTED], gptq(w, metric, step, order))
    np.testing.assert_array_equal(found[Rounding.NEAREST], np.rint(w.astype(np.float64) / step))
    assert (
        errors[Rounding.CVP]
        < errors[Rounding.LLL]
        < errors[Rounding.SORTED]
        < errors[Rounding.GPTQ]
        < errors[Rounding.NEAREST]
    )
    assert error_bound(metric, step, Rounding.LLL) < error_bound(metric, step, Rounding.SORTED)


def test_in_an_isotropic_metric_all_ways_are_plain_rounding() -> None:
    w = rows(20)
    expected = round_to_grid(w, np.eye(C), 0.5, Rounding.NEAREST)
    for rounding in Rounding:
        np.testing.assert_array_equal(round_to_grid(w, np.eye(C), 0.5, rounding), expected)


@pytest.mark.parametrize("rounding", [Rounding.NEAREST, Rounding.CVP])
def test_the_best_scale_has_the_bits_and_no_candidate_with_them_has_a_smaller_error(rounding: Rounding) -> None:
    metric, w, bits = skewed_metric(3.0), rows(400), 2.5
    grid, step = Grid(metric, rounding), step_of_bits(w, bits)
    plain, best = measured_scale(w, metric, grid, step), best_scale(w, metric, grid, step, bits)
    integers = grid.round(w, best.step)
    assert best.bits == entropy_bits(integers) <= bits
    assert best.error == pytest.approx(weighted_error(w, (integers * best.step).astype(np.float32), metric))
    finer = measured_scale(w, metric, grid, best.step * 2 ** (-1 / 64))
    assert finer.bits > bits or finer.error > best.error
    assert (best.error < plain.error) == (best.step < step)


@pytest.mark.parametrize("bits", [1.5, 4.0])
def test_a_step_has_the_entropy_that_was_asked_for(bits: float) -> None:
    w = rows(2000)
    step = step_of_bits(w, bits)
    assert entropy_bits(np.rint(w / np.float32(step)).astype(np.int64)) == pytest.approx(bits, abs=0.01)
    for last in (4, 4_000_000):  # next to the others, and far from them
        assert entropy_bits(np.array([3, 3, 3, last])) == pytest.approx(0.8112781, abs=1e-6)
    with pytest.raises(LatticeError, match="not all 0"):
        step_of_bits(np.zeros((2, 2), np.float32), bits)
    with pytest.raises(LatticeError, match="the step of a grid"):
        round_to_grid(w, np.eye(C), 1e-12, Rounding.NEAREST)


def test_pca_is_the_best_of_all_ranks_and_a_full_rank_is_exact() -> None:
    """No other rows of P keep more; E = C keeps all, whatever the rows."""
    w = rows() @ np.diag(np.exp(-np.arange(C) / 5.0)).astype(np.float32)
    frequency = 1.0 + np.arange(len(w), dtype=np.float64) ** 2
    for rank in (1, 6, C):
        kept = {basis: low_rank(w, skewed_metric(9.0), frequency, rank, basis) for basis in Basis}
        share = {basis: factors.kept for basis, factors in kept.items()}
        assert share[Basis.PCA] >= max(share.values()) - 1e-9
        assert all(factors.tall.shape == (len(w), rank) for factors in kept.values())
        if rank == C:
            for factors in kept.values():
                np.testing.assert_allclose(factors.tall @ factors.wide, w, atol=1e-5)
    with pytest.raises(LatticeError, match="from 1 to 24"):
        low_rank(w, skewed_metric(9.0), frequency, C + 1, Basis.PCA)
