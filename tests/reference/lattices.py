"""Lattices in exact arithmetic: textbook LLL with fractions, Gram-Schmidt, brute force, roots."""

from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray

Matrix = list[list[int]]
Fractions = list[list[Fraction]]


def dot(gram: Matrix, x: list[int], y: list[int]) -> int:
    """Return x G yᵀ."""
    return sum(xi * g * yj for xi, row in zip(x, gram, strict=True) for g, yj in zip(row, y, strict=True))


def gram_schmidt(gram: Matrix) -> tuple[Fractions, list[Fraction]]:
    """Return μ and the squared lengths ‖b*‖² of a basis with a Gram matrix."""
    n = len(gram)
    mu = [[Fraction(0)] * n for _ in range(n)]
    squares = [Fraction(0)] * n
    for i in range(n):
        for j in range(i):
            inner = Fraction(gram[i][j]) - sum(mu[i][k] * mu[j][k] * squares[k] for k in range(j))
            mu[i][j] = inner / squares[j]
        squares[i] = Fraction(gram[i][i]) - sum(mu[i][k] ** 2 * squares[k] for k in range(i))
    return mu, squares


def lll(gram: Matrix, delta: Fraction = Fraction(99, 100)) -> Matrix:
    """Return the transform of the textbook's LLL, which computes everything again after each step."""
    n, k = len(gram), 1
    basis = [[int(i == j) for j in range(n)] for i in range(n)]

    def current() -> Matrix:
        return [[dot(gram, x, y) for y in basis] for x in basis]

    while k < n:
        for j in range(k - 1, -1, -1):
            multiple = round(gram_schmidt(current())[0][k][j])
            basis[k] = [x - multiple * y for x, y in zip(basis[k], basis[j], strict=True)]
        mu, squares = gram_schmidt(current())
        if squares[k] >= (delta - mu[k][k - 1] ** 2) * squares[k - 1]:
            k += 1
        else:
            basis[k], basis[k - 1] = basis[k - 1], basis[k]
            k = max(k - 1, 1)
    return basis


def determinant(matrix: Matrix) -> Fraction:
    """Return the determinant, by Gaussian elimination."""
    rows = [[Fraction(element) for element in row] for row in matrix]
    result = Fraction(1)
    for i in range(len(rows)):
        pivot = next((r for r in range(i, len(rows)) if rows[r][i]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != i:
            rows[i], rows[pivot], result = rows[pivot], rows[i], -result
        result *= rows[i][i]
        for r in range(i + 1, len(rows)):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    return result


def nearest(gram: NDArray[np.float64], target: NDArray[np.float64], *, nonzero: bool = False) -> float:
    """Return the squared distance of the nearest integer point in a metric, by brute force.

    Coordinate i of a point within a distance d is at most d √(G⁻¹)_ii away from the target's.
    """
    start = np.rint(target)
    if nonzero:
        bound = float(np.diag(gram).min())
    else:
        bound = float((target - start) @ gram @ (target - start))
    reach = np.sqrt(bound * np.diag(np.linalg.inv(gram))) + 1e-9
    low, high = np.ceil(target - reach).astype(int), np.floor(target + reach).astype(int)
    sides = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    points = np.stack([side.ravel() for side in np.meshgrid(*sides, indexing="ij")], axis=1)
    if nonzero:
        points = points[np.any(points != 0, axis=1)]
    away = target - points
    return float(np.einsum("ni,ij,nj->n", away, gram, away).min())


def roots(name: str) -> NDArray[np.float64]:
    """Return the minimal vectors of a lattice; those of a root lattice bound its Voronoi cell (Conway and Sloane)."""
    size = {"Z": 1, "FCC": 3, "D4": 4, "E8": 8}[name]
    if name == "Z":
        return np.array([[1.0], [-1.0]])
    whole = []
    for i in range(size):
        for j in range(i):
            for si, sj in product((1, -1), repeat=2):
                vector = np.zeros(size)
                vector[i], vector[j] = si, sj
                whole.append(vector)
    halves = [np.array(s) / 2 for s in product((1, -1), repeat=8) if np.prod(s) == 1] if name == "E8" else []
    return np.array(whole + halves)
