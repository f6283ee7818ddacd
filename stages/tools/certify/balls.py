"""Ball arithmetic by the package python-flint: a ball is a midpoint and a radius, and contains the exact number.

Every operation returns a ball that contains all results for the numbers in its operands (Johansson, 2017, "Arb:
efficient arbitrary-precision midpoint-radius interval arithmetic"), so a result is a proof. float64 and float32 numbers
are converted exactly. The precision is a setting of the process: compute within `working_precision`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import ConfigError

Ball = Any
"""A `flint.arb`."""
BallMatrix = Any
"""A `flint.arb_mat`."""
Floats64 = NDArray[np.floating[Any]]


def flint() -> Any:
    """Return the module `flint`. Raises ConfigError without it."""
    try:
        import flint as module
    except ImportError as error:
        raise ConfigError(
            "certify",
            expected="the package python-flint, which has ball arithmetic",
            got=str(error),
            hint="pip install 'threadloom[certify]', or pip install python-flint",
        ) from error
    return module


@contextmanager
def working_precision(bits: int) -> Iterator[None]:
    """Compute balls with midpoints of `bits` bits while the context is open."""
    with flint().ctx.workprec(bits):
        yield


@dataclass(frozen=True)
class Enclosure:
    """A number that is proven to lie between two others."""

    lower: float
    upper: float

    def joined(self, other: "Enclosure") -> "Enclosure":
        """Return the enclosure of the larger of both numbers."""
        return Enclosure(max(self.lower, other.lower), max(self.upper, other.upper))


NOTHING = Enclosure(0.0, 0.0)
UNBOUNDED = Enclosure(math.inf, math.inf)
"""The distance to a result that is infinite or NaN."""


def ball(number: float) -> Ball:
    """Return the ball of radius 0 around a number."""
    return flint().arb(number)


def matrix(values: Floats64) -> BallMatrix:
    """Return a matrix (R, C) of finite numbers as balls of radius 0."""
    return flint().arb_mat(values.shape[0], values.shape[1], values.ravel().tolist())


def from_rows(rows: Sequence[Sequence[Ball]]) -> BallMatrix:
    """Return a matrix of balls from its rows."""
    return flint().arb_mat(len(rows), len(rows[0]), [number for row in rows for number in row])


def rows_of(balls: BallMatrix) -> list[list[Ball]]:
    """Return the rows of a matrix of balls."""
    entries, columns = balls.entries(), balls.ncols()
    return [entries[first : first + columns] for first in range(0, len(entries), columns)]


def vector(values: Floats64) -> list[Ball]:
    """Return finite numbers (N,) as balls of radius 0."""
    return [flint().arb(number) for number in values.tolist()]


def magnitude(number: Ball) -> Enclosure:
    """Return float64 bounds of the absolute value of a ball."""
    return Enclosure(_down(number.abs_lower()), _up(number.abs_upper()))


def radius(balls: BallMatrix) -> float:
    """Return an upper bound of the radii of a matrix of balls."""
    return max(_up(number.rad()) for number in balls.entries())


def distance(values: Floats64, balls: BallMatrix, margin: Iterable[Ball] | None = None) -> Enclosure:
    """Return bounds of the largest distance of the numbers (R, C) to the exact numbers in balls.

    With `margin`, one ball for each number, the computed numbers are known only to lie within the margin of `values`.
    """
    if not np.isfinite(values).all():
        return UNBOUNDED
    return largest(matrix(values) - balls, margin)


def largest(differences: BallMatrix, margin: Iterable[Ball] | None = None) -> Enclosure:
    """Return bounds of the largest absolute value in a matrix of balls; `margin` as in `distance`."""
    entries = differences.entries()
    if margin is None:
        return Enclosure(
            max(_down(number.abs_lower()) for number in entries), max(_up(number.abs_upper()) for number in entries)
        )
    lower = upper = 0.0
    for number, width in zip(entries, margin, strict=True):
        lower = max(lower, _down(number.abs_lower() - width.abs_upper()))
        upper = max(upper, _up(number.abs_upper() + width.abs_upper()))
    return Enclosure(lower, upper)


def _up(number: Ball) -> float:
    """Return a float64 number above every number of a ball."""
    return math.nextafter(float(number.upper()), math.inf)


def _down(number: Ball) -> float:
    """Return a float64 number below every number of a ball whose numbers are magnitudes; at least 0."""
    return max(0.0, math.nextafter(float(number.lower()), -math.inf))
