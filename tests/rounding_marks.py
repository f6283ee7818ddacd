"""Marks on the results of `tests.reference` that an implementation in less precision rounds.

They return their argument, unless a disturbance of them is set: see `tests.error_bounds`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Arithmetic(Protocol):
    """Disturbance of the marked results."""

    @property
    def product_units(self) -> float:
        """Return the error of one product within a matrix multiply, in units of one rounding."""

    def computed(self, value: Array, units: Array) -> Array:
        """Return a result of arithmetic with its error, `units` times that of one rounding of the number 1."""

    def stored(self, value: Array) -> Array:
        """Return an activation, or its gradient, as it is stored."""


_ARITHMETIC: ContextVar[Arithmetic | None] = ContextVar("arithmetic", default=None)


@contextmanager
def arithmetic(disturbance: Arithmetic | None) -> Iterator[None]:
    """Disturb the marked results within the ``with`` block."""
    token = _ARITHMETIC.set(disturbance)
    try:
        yield
    finally:
        _ARITHMETIC.reset(token)


def computed(value: Array, units: Callable[[], Array]) -> Array:
    """Mark a result of arithmetic, whose error is ``units()`` times that of one rounding of the number 1."""
    disturbance = _ARITHMETIC.get()
    if disturbance is None:
        return value
    with arithmetic(None):
        error = units()
    return disturbance.computed(value, error)


def stored(value: Array) -> Array:
    """Mark a result that is stored in the format of the activations."""
    disturbance = _ARITHMETIC.get()
    return value if disturbance is None else disturbance.stored(value)


def summed(result: Array, count: int, squares: Callable[[], Array], of_term: float = 1.0) -> Array:
    """Mark a sum of `count` terms, whose squares add up to ``squares()``; each term has `of_term` roundings before.

    An addition is off by u times its result, a partial sum. The order of the terms is unrelated to their values, so the
    partial sum of j of n terms is a sample without replacement: its expectation is ``j / n * result`` and its variance
    at most ``j (n - j) / (n (n - 1)) * squares``. On average over j, its square is ``result**2 / 3 + squares / 6``.
    """

    def units() -> Array:
        of_terms = squares()
        return np.asarray(np.sqrt(count * (result**2 / 3.0 + of_terms / 6.0) + of_term**2 * of_terms + result**2))

    return computed(result, units)


def product(a: Array, b: Array, *added: Array) -> Array:
    """Return a @ b plus the arrays `added`."""

    def squares() -> Array:
        return np.asarray(sum((term**2 for term in added), (a**2) @ (b**2)))

    disturbance = _ARITHMETIC.get()
    of_term = disturbance.product_units if disturbance else 1.0
    return summed(np.asarray(sum(added, a @ b)), a.shape[-1] + len(added), squares, of_term)


def total(x: Array, y: Array) -> Array:
    """Return x + y."""
    return computed(x + y, lambda: np.abs(x + y))


def rounded_sum(terms: Array) -> Array:
    """Return the sum of all terms, computed in float64 and rounded once."""
    return computed(np.asarray(terms.sum()), lambda: np.asarray(np.abs(terms).sum()))


def multiple(factor: Array | float, x: Array) -> Array:
    """Return factor * x, element by element if the factor is an array."""
    return computed(factor * x, lambda: np.abs(factor * x))


def constant(value: float) -> float:
    """Return a number that is rounded once for all its uses."""
    return float(computed(np.asarray(value), lambda: np.abs(np.asarray(value))))
