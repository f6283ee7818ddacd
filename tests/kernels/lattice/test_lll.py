"""LLL in float64 on exact integers: a change of basis, reduced in exact arithmetic, as good as the textbook's."""

from fractions import Fraction
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from numpy.typing import NDArray

from tests.kernels.support import random_shapes
from tests.reference import lattices
from threadloom.kernels.lattice import DELTA, ETA, LllStatus, lll_gram

Integers = NDArray[np.int64]


def reduced(gram: Integers) -> tuple[int, Integers, Integers]:
    """Return the status, the reduced matrix and the transform."""
    n = len(gram)
    result, transform = gram.copy(), np.eye(n, dtype=np.int64)
    r, mu = np.full((n, n), np.nan), np.full((n, n), np.nan)
    status = lll_gram(result, transform, r, mu, DELTA, ETA)
    return status, result, transform


def random_gram(seed: int, n: int, size: int) -> Integers:
    """Return the Gram matrix of a basis of random integers."""
    basis = np.random.default_rng([seed, n]).integers(-size, size + 1, (n, n))
    basis += np.eye(n, dtype=np.int64) * (size + 1)
    return np.asarray(basis @ basis.T)


@random_shapes
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), size=st.sampled_from([1, 7, 1000]))
def test_a_reduction_is_a_change_of_basis_and_reduced(seed: int, n: int, size: int) -> None:
    """Size reduction and the condition of Lovász hold in fractions, with the rounding of float64 allowed for."""
    gram = random_gram(seed, n, size)
    assume(lattices.determinant(gram.tolist()) != 0)
    status, found, transform = reduced(gram)
    assert status == LllStatus.REDUCED
    np.testing.assert_array_equal(transform @ gram @ transform.T, found)
    assert abs(lattices.determinant(transform.tolist())) == 1
    mu, squares = lattices.gram_schmidt(found.tolist())
    slack = Fraction(1, 10**9)
    assert all(abs(element) <= Fraction(ETA) + slack for row in mu for element in row)
    for k in range(1, n):
        assert squares[k] + mu[k][k - 1] ** 2 * squares[k - 1] >= (Fraction(DELTA) - slack) * squares[k - 1]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_it_is_as_good_as_the_textbook(n: int) -> None:
    """δ near 1: in two dimensions the first vector is the shortest; above, lengths differ by what η > ½ allows."""
    for seed in range(2):
        gram = random_gram(seed, n, 50)
        _, found, _ = reduced(gram)
        theirs = lattices.lll(gram.tolist())
        lengths = [lattices.dot(gram.tolist(), row, row) for row in theirs]
        shortest = lattices.nearest(gram.astype(float), np.zeros(n), nonzero=True)
        if n == 2:
            assert found[0, 0] == shortest == lengths[0]
        # Lenstra, Lenstra and Lovász, (1.9) and (1.11), with δ and η for 3/4 and 1/2
        alpha = 1 / (DELTA - ETA**2)
        assert found[0, 0] <= alpha ** (n - 1) * shortest
        assert prod(map(float, np.diag(found))) <= alpha ** (n * (n - 1) / 2) * prod(map(float, lengths))


def test_against_flint() -> None:
    flint = pytest.importorskip("flint")
    rng = np.random.default_rng(4)
    n = 40
    rotation = np.linalg.qr(rng.standard_normal((n, n)))[0]
    metric = (rotation * np.exp(-np.arange(n) / 4)) @ rotation.T
    gram = np.rint((metric + metric.T) * 2.0**30).astype(np.int64)
    status, found, transform = reduced(gram)
    assert status == LllStatus.REDUCED
    exact, matrix = flint.fmpz_mat(transform.tolist()), flint.fmpz_mat(gram.tolist())
    assert abs(int(exact.det())) == 1
    assert exact * matrix * exact.transpose() == flint.fmpz_mat(found.tolist())
    theirs = matrix.lll(rep="gram", gram="exact", delta=DELTA, eta=ETA)
    lengths = np.array([float(int(theirs[i, i])) for i in range(n)])
    # Two reductions of one lattice: neither is better by much in the mean.
    assert abs(np.log(np.diag(found)).mean() - np.log(lengths).mean()) < 0.2


def test_what_float64_cannot_reduce_has_a_status_and_is_still_a_change_of_basis() -> None:
    n = 12
    basis = np.eye(n, dtype=np.int64)
    basis[:, 0] = np.random.default_rng(0).integers(2**27, 2**28, n)  # a knapsack: nearly parallel vectors
    gram = basis @ basis.T
    status, found, transform = reduced(gram)
    assert status == LllStatus.PRECISION
    exact = transform.astype(object)
    np.testing.assert_array_equal(exact @ gram.astype(object) @ exact.T, found.astype(object))
    assert reduced(np.array([[2**61, 2**60], [2**60, 2**61]]) * np.int64(1))[0] in (0, LllStatus.OVERFLOW)
    assert reduced(np.zeros((2, 2), np.int64))[0] == LllStatus.PRECISION
