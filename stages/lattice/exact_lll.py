"""LLL reduction in exact integers of any size (Cohen, A Course in Computational Algebraic Number Theory, 2.6.7).

Slow: for matrices that float64 is too short for. With d_i the determinant of the first i + 1 rows and columns of the
Gram matrix, the Gram-Schmidt coefficients are μ_ij = λ_ij / d_j with integers λ_ij.
"""

from dataclasses import dataclass, field

_DELTA = (99, 100)


class NotPositiveDefinite(ValueError):
    """A Gram matrix without an inverse, or of no basis."""


@dataclass
class ExactReduction:
    """The state of a reduction: `gram` is T G Tᵀ of the first matrix G, and the transform T."""

    gram: list[list[int]]
    transform: list[list[int]] = field(init=False)
    lambdas: list[list[int]] = field(init=False)
    d: list[int] = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.gram)
        self.gram = [list(row) for row in self.gram]
        self.transform = [[int(i == j) for j in range(n)] for i in range(n)]
        self.lambdas = [[0] * n for _ in range(n)]
        self.d = [0] * n

    def run(self) -> None:
        """Reduce the basis. Raises `NotPositiveDefinite`."""
        n, k, known = len(self.gram), 0, -1
        while k < n:
            if k > known:
                self._orthogonalise(k)
                known = k
            if k:
                self._subtract(k, k - 1)
            if k and self._must_swap(k):
                self._swap(k, known)
                k -= 1
                continue
            for j in range(k - 2, -1, -1):
                self._subtract(k, j)
            k += 1

    def _before(self, i: int) -> int:
        return self.d[i - 1] if i > 0 else 1

    def _orthogonalise(self, k: int) -> None:
        row = self.lambdas[k]
        for j in range(k + 1):
            u = self.gram[k][j]
            for i in range(j):
                other = row[i] if j == k else self.lambdas[j][i]
                u = (self.d[i] * u - row[i] * other) // self._before(i)
            if j < k:
                row[j] = u
        if u <= 0:
            raise NotPositiveDefinite
        self.d[k] = u

    def _subtract(self, k: int, j: int) -> None:
        """Subtract the multiple of vector j from vector k that makes |μ_kj| at most ½."""
        if 2 * abs(self.lambdas[k][j]) <= self.d[j]:
            return
        q = (2 * self.lambdas[k][j] + self.d[j]) // (2 * self.d[j])
        for rows in (self.transform, self.gram):
            rows[k] = [own - q * other for own, other in zip(rows[k], rows[j], strict=True)]
        for row in self.gram:
            row[k] -= q * row[j]
        self.lambdas[k][j] -= q * self.d[j]
        for i in range(j):
            self.lambdas[k][i] -= q * self.lambdas[j][i]

    def _must_swap(self, k: int) -> bool:
        """Return True if s_{k−1} < δ r_{k−1,k−1}, both multiplied by the denominators."""
        numerator, denominator = _DELTA
        left = denominator * (self.d[k] * self._before(k - 1) + self.lambdas[k][k - 1] ** 2)
        return left < numerator * self.d[k - 1] ** 2

    def _swap(self, k: int, known: int) -> None:
        for rows in (self.gram, self.transform):
            rows[k], rows[k - 1] = rows[k - 1], rows[k]
        for row in self.gram:
            row[k], row[k - 1] = row[k - 1], row[k]
        for j in range(k - 1):
            self.lambdas[k][j], self.lambdas[k - 1][j] = self.lambdas[k - 1][j], self.lambdas[k][j]
        middle = self.lambdas[k][k - 1]
        b = (self._before(k - 1) * self.d[k] + middle**2) // self.d[k - 1]
        for i in range(k + 1, known + 1):
            row = self.lambdas[i]
            first = row[k]
            row[k] = (self.d[k] * row[k - 1] - middle * first) // self.d[k - 1]
            row[k - 1] = (b * first + middle * row[k]) // self.d[k]
        self.d[k - 1] = b
