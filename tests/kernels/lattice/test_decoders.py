"""Decoders of Z, FCC, D4 and E8: points of the lattice, the nearest ones, idempotent, within the covering radius."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numpy.typing import NDArray

from tests.kernels.support import random_shapes
from tests.reference import lattices
from threadloom.kernels.compiling import Floats
from threadloom.kernels.lattice import BLOCK, Lattice, round_rows

COVERING = {Lattice.Z: 0.5, Lattice.FCC: 1.0, Lattice.D4: 1.0, Lattice.E8: 1.0}
SECOND_MOMENT = {Lattice.Z: 0.08333, Lattice.FCC: 0.078745, Lattice.D4: 0.076603, Lattice.E8: 0.071682}
"""Normalised, of Conway and Sloane, Sphere Packings, Lattices and Groups, table 2.3."""
VOLUME = {Lattice.Z: 1.0, Lattice.FCC: 2.0, Lattice.D4: 2.0, Lattice.E8: 1.0}

each_lattice = pytest.mark.parametrize("lattice", Lattice)


def rounded(rows: Floats, lattice: Lattice, scale: float = 1.0) -> Floats:
    out = np.full_like(rows, np.nan)
    round_rows(rows, int(lattice), scale, np.full(8, np.nan, np.float32), out)
    return out


def blocks(lattice: Lattice, count: int, seed: int, spread: float = 5.0) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.uniform(-spread, spread, (count, BLOCK[lattice])).astype(np.float32)


def belongs(points: NDArray[np.floating], lattice: Lattice) -> NDArray[np.bool]:
    """Return for each row whether it is a point of the lattice."""
    whole = np.all(points == np.rint(points), axis=1)
    if lattice is Lattice.Z:
        return whole
    even = points.sum(axis=1) % 2 == 0
    halves = np.all(points - 0.5 == np.rint(points - 0.5), axis=1)
    return (whole | halves) & even if lattice is Lattice.E8 else whole & even


@each_lattice
def test_the_nearest_point_of_the_lattice(lattice: Lattice) -> None:
    """A point p is nearest to x if no minimal vector v has ⟨x − p, v⟩ > ½ ⟨v, v⟩, since they bound the Voronoi cell."""
    x = blocks(lattice, 2000, 1)
    found = rounded(x, lattice)
    assert belongs(found, lattice).all()
    vectors = lattices.roots(lattice.name)
    assert len(vectors) == {Lattice.Z: 2, Lattice.FCC: 12, Lattice.D4: 24, Lattice.E8: 240}[lattice]
    away = x.astype(np.float64) - found
    assert (away @ vectors.T <= 0.5 * (vectors**2).sum(axis=1) + 1e-9).all()
    assert np.linalg.norm(away, axis=1).max() <= COVERING[lattice] + 1e-9
    np.testing.assert_array_equal(rounded(found, lattice), found)


@each_lattice
def test_against_brute_force(lattice: Lattice) -> None:
    """All points with coordinates next to those of x; in E8 with steps of ½."""
    size = BLOCK[lattice]
    offsets = np.array(np.meshgrid(*[[-1, 0, 1, 2]] * size if size < 8 else [[0, 1]] * 8)).reshape(size, -1).T
    shifts = (0.0,) if size < 8 else (0.0, 0.5)
    for x in blocks(lattice, 12, 2).astype(np.float64):
        points = np.concatenate([np.floor(x - shift) + shift + offsets for shift in shifts])
        points = points[belongs(points, lattice)]
        found = rounded(x[None].astype(np.float32), lattice)[0]
        least = ((points - x) ** 2).sum(axis=1).min()
        assert ((found - x) ** 2).sum() <= least + 1e-9


@each_lattice
def test_deep_holes_and_the_second_moment(lattice: Lattice) -> None:
    hole = np.zeros((1, BLOCK[lattice]), np.float32)
    hole[0, 0] = 0.5 if lattice is Lattice.Z else 1.0
    assert np.linalg.norm(hole - rounded(hole, lattice)) == COVERING[lattice]
    x, size = blocks(lattice, 20_000, 3, 4.0), BLOCK[lattice]
    error = np.square(x - rounded(x, lattice), dtype=np.float64).sum(axis=1).mean() / size
    # 20,000 blocks: the standard error of the mean is under 0.5 % of it
    assert error / VOLUME[lattice] ** (2 / size) == pytest.approx(SECOND_MOMENT[lattice], rel=0.02)


@random_shapes
@given(
    lattice=st.sampled_from(list(Lattice)),
    columns=st.integers(1, 19),
    exponent=st.integers(-9, 3),
    seed=st.integers(0, 10**6),
)
def test_scales_remainders_and_in_place(lattice: Lattice, columns: int, exponent: int, seed: int) -> None:
    scale, size = 2.0**exponent, BLOCK[lattice]
    rows = (np.random.default_rng(seed).standard_normal((3, columns)) * 4 * scale).astype(np.float32)
    expected = rounded(rows, lattice, scale)
    for first in range(0, columns - columns % size, size):
        block = (rows[:, first : first + size] / np.float32(scale)).astype(np.float32)
        np.testing.assert_array_equal(expected[:, first : first + size], rounded(block, lattice) * scale)
    rest = rows[:, columns - columns % size :]
    np.testing.assert_array_equal(expected[:, columns - columns % size :], np.rint(rest / scale) * scale)
    round_rows(rows, int(lattice), scale, np.zeros(8, np.float32), rows)
    np.testing.assert_array_equal(rows, expected)


@each_lattice
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(lattice: Lattice, value: float) -> None:
    rows = np.zeros((1, BLOCK[lattice]), np.float32)
    rows[0, -1] = value
    with np.errstate(invalid="ignore"):  # without the compiler NumPy warns
        assert not np.isfinite(rounded(rows, lattice)).all()
