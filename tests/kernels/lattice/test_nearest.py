"""Enumeration against brute force, Babai's nearest plane against its bound and its definition."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from tests.kernels.support import random_shapes
from tests.reference import lattices
from threadloom.kernels.lattice import enumerate_nearest, nearest_in_blocks, nearest_planes

Doubles = NDArray[np.float64]
PLENTY = 10**6


def metric_of(seed: int, n: int) -> Doubles:
    rng = np.random.default_rng([seed, n])
    basis = rng.standard_normal((n, n)) + np.diag(rng.uniform(0.5, 2, n))
    return np.asarray(basis @ basis.T + 0.05 * np.eye(n))


def planes(gram: Doubles) -> tuple[Doubles, Doubles]:
    upper = np.linalg.cholesky(gram).T
    return np.ascontiguousarray(upper / np.diag(upper)[:, None]), np.diag(upper) ** 2


def search(gram: Doubles, target: Doubles, bound: float = np.inf, *, nonzero: bool = False) -> tuple[float, Doubles]:
    n = len(gram)
    best = np.full(n, np.nan)
    found, left = enumerate_nearest(*planes(gram), target, best, bound, nonzero, PLENTY, np.full((4, n + 1), np.nan))
    assert left > 0
    return found, best


@random_shapes
@given(seed=st.integers(0, 10**6), n=st.integers(1, 4))
def test_the_nearest_and_the_shortest_vector(seed: int, n: int) -> None:
    gram = metric_of(seed, n)
    target = np.random.default_rng(seed).uniform(-3, 3, n)
    distance, point = search(gram, target)
    away = target - point
    np.testing.assert_allclose(distance, lattices.nearest(gram, target), rtol=1e-9)
    np.testing.assert_allclose(away @ gram @ away, distance, rtol=1e-9)
    length, vector = search(gram, np.zeros(n), float(np.diag(gram).min()) * 1.001, nonzero=True)
    assert np.any(vector != 0)
    np.testing.assert_allclose(length, lattices.nearest(gram, np.zeros(n), nonzero=True), rtol=1e-9)
    np.testing.assert_allclose(vector @ gram @ vector, length, rtol=1e-9)


def test_a_bound_and_a_number_of_nodes_end_the_search() -> None:
    gram, target = metric_of(3, 4), np.array([0.5, 0.3, -0.2, 7.4])
    distance, _ = search(gram, target)
    best = np.full(4, np.nan)
    scratch = np.zeros((4, 5))
    assert enumerate_nearest(*planes(gram), target, best, distance * 0.999, False, PLENTY, scratch)[0] < distance
    assert np.isnan(best).all()
    found, left = enumerate_nearest(*planes(gram), target, best, np.inf, False, 4, scratch)
    assert left == 0
    assert found >= distance  # Babai's point is reached with one node for each coordinate
    np.testing.assert_array_equal(best, babai(gram, target[None])[0])


def babai(gram: Doubles, points: Doubles) -> NDArray[np.int64]:
    rest, out = points.copy(), np.zeros(points.shape, np.int64)
    nearest_planes(rest, planes(gram)[0], out)
    np.testing.assert_allclose(rest, points - out, rtol=0, atol=1e-12)
    return out


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_babai_stays_within_the_box_of_the_orthogonal_vectors(n: int) -> None:
    """The remainder has |⟨e, b*_i⟩| ≤ ½ ‖b*_i‖² for every i: that defines the point."""
    gram = metric_of(n, n)
    points = np.random.default_rng(n).uniform(-4, 4, (33, n))
    upper = np.linalg.cholesky(gram).T
    coordinates = (points - babai(gram, points)) @ upper.T / np.diag(upper)
    assert np.abs(coordinates).max() <= 0.5 + 1e-9


def in_blocks(gram: Doubles, points: Doubles, block: int, nodes: int = PLENTY) -> tuple[NDArray[np.int64], int]:
    rest, out = points.copy(), np.zeros(points.shape, np.int64)
    scratch = np.full((block + 6, block + 1), np.nan)
    unfinished = nearest_in_blocks(rest, *planes(gram), block, nodes, out, scratch)
    np.testing.assert_allclose(rest, points - out, rtol=0, atol=1e-12)
    return out, unfinished


@pytest.mark.parametrize(("n", "block"), [(4, 4), (4, 9), (7, 3), (8, 4), (5, 1)])
def test_blocks_are_exact_given_the_coordinates_after_them(n: int, block: int) -> None:
    """The distance of a block, projected away from those before it, is the least by brute force."""
    gram, points = metric_of(n, n), np.random.default_rng(n).uniform(-4, 4, (9, n))
    found, unfinished = in_blocks(gram, points, block)
    assert unfinished == 0
    upper = np.linalg.cholesky(gram).T
    for point, z in zip(points, found, strict=True):
        for last in range(n, 0, -block):
            first = max(last - block, 0)
            own = upper[first:last, first:last]
            moved = upper[first:last, last:] @ (point - z)[last:]
            target = point[first:last] + np.linalg.solve(own, moved)
            away = own @ (target - z[first:last])
            np.testing.assert_allclose(away @ away, lattices.nearest(own.T @ own, target), rtol=1e-9)
    if block == 1:
        np.testing.assert_array_equal(found, babai(gram, points))


def test_a_block_without_nodes_is_babai() -> None:
    gram, points = metric_of(8, 8), np.random.default_rng(8).uniform(-4, 4, (5, 8))
    found, unfinished = in_blocks(gram, points, 8, nodes=8)
    np.testing.assert_array_equal(found, babai(gram, points))
    assert unfinished == 5
