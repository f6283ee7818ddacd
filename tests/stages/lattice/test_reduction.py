"""Reductions with a certificate, exact integers where float64 is too short, short and near vectors."""

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.reference import lattices
from threadloom.kernels.lattice import Lattice, round_rows
from threadloom.stages.lattice import (
    EXACT_DIMENSIONS,
    LatticeError,
    integer_gram,
    nearest_vector,
    reduce_gram,
    shortest_vector,
)
from threadloom.stages.lattice.certificate import _PRIMES, is_unimodular, products_equal


def knapsack(n: int, bits: int) -> NDArray[np.int64]:
    """Return the Gram matrix of vectors that are nearly parallel."""
    basis = np.eye(n, dtype=np.int64)
    basis[:, 0] = np.random.default_rng(0).integers(2 ** (bits - 1), 2**bits, n)
    return np.asarray(basis @ basis.T)


@pytest.mark.parametrize(("bits", "in_float64"), [(8, True), (28, False)])
def test_a_reduction_is_certified_and_reduced(bits: int, in_float64: bool) -> None:
    gram = knapsack(8, bits)
    found = reduce_gram(gram)
    assert found.in_float64 is in_float64
    transform = found.transform.astype(object)
    assert abs(lattices.determinant(found.transform.tolist())) == 1
    np.testing.assert_array_equal(transform @ gram.astype(object) @ transform.T, found.gram.astype(object))
    mu, squares = lattices.gram_schmidt(found.gram.tolist())
    assert max(abs(element) for row in mu for element in row) <= Fraction(51, 100) + Fraction(1, 10**9)
    for k in range(1, 8):
        assert squares[k] + mu[k][k - 1] ** 2 * squares[k - 1] >= Fraction(98, 100) * squares[k - 1]
    # LLL finds the relation between the numbers: the shortest vector is much shorter than theirs.
    assert found.gram[0, 0] < gram[0, 0] / 2**bits


def test_the_certificate_notices_a_difference_of_one() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-(2**20), 2**20, (5, 5)) for _ in range(2))
    product = a @ b
    assert products_equal((a, b), product)
    product[3, 2] += 1
    assert not products_equal((a, b), product)
    for multiple in (_PRIMES[0], _PRIMES[0] * _PRIMES[1]):  # the first residues are equal
        product[3, 2] += multiple - 1
        assert not products_equal((a, b), product)
        product[3, 2] -= multiple - 1
    swapped = np.eye(5, dtype=np.int64)[[1, 0, 2, 4, 3]] @ (np.eye(5, dtype=np.int64) + np.tril(a, -1))
    assert is_unimodular(swapped)
    assert is_unimodular(-swapped)
    assert not is_unimodular(swapped * np.array([1, 1, 2, 1, 1]))
    assert not is_unimodular(np.ones((5, 5), np.int64))


@pytest.mark.parametrize(
    ("gram", "words"),
    [
        (np.array([[1, 2], [2, 1]]), "not positive definite"),
        (np.array([[1, 2], [3, 1]]), "not symmetric"),
        (np.array([[1 << 61]]), "scale it with integer_gram"),
        (np.diag([0] * 70), "70 rows on which float64 ended"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(gram: NDArray[np.int64], words: str) -> None:
    with pytest.raises(LatticeError, match=words):
        reduce_gram(gram)
    with pytest.raises(LatticeError, match="a largest element of nan"):
        integer_gram(np.array([[np.nan]]))


def basis_of_e8() -> NDArray[np.float64]:
    """Return a basis of E8, vectors as rows: seven of D8 and one of halves."""
    basis = np.zeros((8, 8))
    basis[0, 0] = 2
    for i in range(1, 7):
        basis[i, i - 1], basis[i, i] = -1, 1
    basis[7] = 0.5
    return basis


def test_the_vectors_of_e8_are_those_of_its_decoder() -> None:
    basis = basis_of_e8()
    assert abs(np.linalg.det(basis)) == pytest.approx(1)
    short = shortest_vector(basis @ basis.T)
    assert short.exact
    assert short.distance == pytest.approx(2)
    for point in np.random.default_rng(0).uniform(-3, 3, (5, 8)).astype(np.float32):
        out = np.zeros((1, 8), np.float32)
        round_rows(point[None], int(Lattice.E8), 1.0, np.zeros(8, np.float32), out)
        near = nearest_vector(basis @ basis.T, point @ np.linalg.inv(basis))
        assert near.exact
        assert near.distance == pytest.approx(float(((point - out) ** 2).sum()), rel=1e-6)


def test_exact_up_to_forty_dimensions_and_near_above() -> None:
    rng = np.random.default_rng(5)
    for n in (EXACT_DIMENSIONS, EXACT_DIMENSIONS + 1):
        # A lattice with a vector of length² 2 in a basis that hides it; all others are longer.
        gram, hidden = np.diag(np.arange(2.0, n + 2) ** 2 / 2), np.eye(n)
        for _ in range(2):
            hidden = hidden @ (np.eye(n) + np.triu(rng.integers(-1, 2, (n, n)), 1) * (rng.random((n, n)) < 0.1))
        found = shortest_vector(hidden @ gram @ hidden.T)
        assert found.exact is (n <= EXACT_DIMENSIONS)
        assert found.distance == pytest.approx(2)
        target = np.rint(rng.uniform(-9, 9, n)) + rng.uniform(-0.01, 0.01, n)  # by a lattice point
        near = nearest_vector(hidden @ gram @ hidden.T, target @ np.linalg.inv(hidden))
        assert near.exact is found.exact
        np.testing.assert_array_equal(near.coordinates @ hidden, np.rint(target))
    assert not nearest_vector(gram[:30, :30], np.full(30, 0.5), nodes=40).exact
