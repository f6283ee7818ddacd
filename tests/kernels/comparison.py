"""Comparison of results with float64, each within a bound that `tests.error_bounds` derives."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.reference import Array


class Comparison(NamedTuple):
    """Outcome of one comparison."""

    error: float  # relative L2 distance; absolute if the expected tensor is zero
    of_bound: float  # largest error as a share of its bound


COMPARISONS: ContextVar[Callable[[Comparison], None] | None] = ContextVar("comparisons", default=None)
"""Receiver of every comparison of the current thread, passed or failed; set by `tests.targets`."""


def _record(comparison: Comparison) -> None:
    receive = COMPARISONS.get()
    if receive is not None:
        receive(comparison)


def distance(actual: NDArray[Any], expected: Array) -> float:
    """Return the relative L2 distance, or the absolute one if the expected tensor is zero."""
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(actual.astype(np.float64).ravel() - expected.ravel())) / (norm or 1.0)


def within(actual: NDArray[Any], expected: Array, bound: Array | float) -> bool:
    """Return True if the error of every element is within its bound; NaN is not."""
    return _share(actual, expected, bound) <= 1.0


def _share(actual: NDArray[Any], expected: Array, bound: Array | float) -> float:
    """Return the largest error as a share of its bound; NaN if there is one."""
    error = np.abs(actual.astype(np.float64) - expected)
    share = float(np.max(error / np.maximum(bound, np.finfo(np.float64).tiny), initial=0.0))
    _record(Comparison(distance(actual, expected), share))
    return share


def assert_nan_from(position: int, out: Array, clean: Array, every: bool) -> None:
    """Assert that rows before a position are as without the NaN there, and that later ones show it.

    After an infinite key only some rows must (`every` is False): a score of minus infinity is a probability of 0.
    """
    np.testing.assert_array_equal(out[:position], clean[:position])
    shown = np.isnan(out[position:])
    assert shown.all() if every else shown.any()


def assert_within(actual: NDArray[Any], expected: Array, bound: Array | float, name: str = "") -> None:
    """Assert that the error of every element is within its bound; NaN fails."""
    assert actual.shape == expected.shape, name
    share = _share(actual, expected, bound)
    assert share <= 1.0, f"{name} {actual.shape}: an error is {share:.3g} of its bound"


def assert_close(actual: NDArray[Any], expected: Array, tolerance: float, name: str = "") -> None:
    """Assert that the relative L2 distance of a tensor is at most `tolerance`; NaN fails."""
    assert actual.size == expected.size, name
    assert_distance(distance(actual, expected), tolerance, f"{name} {actual.shape}")


def assert_distance(found: float, tolerance: float, name: str = "") -> None:
    """Assert that a relative distance is at most `tolerance`; NaN fails."""
    _record(Comparison(found, found / max(tolerance, np.finfo(np.float64).tiny)))
    assert found <= tolerance, f"{name}: relative L2 distance {found:.3g}, allowed {tolerance:.3g}"
