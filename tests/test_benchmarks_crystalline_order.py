"""The benchmark of orders of the vocabulary: its orders, its sorted scatter, and its table."""

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import crystalline_order
from benchmarks.crystalline_order import hilbert_index, orders, scatter_sorted

pytestmark = pytest.mark.timeout(120)


def test_the_hilbert_curve_visits_every_point_step_by_step() -> None:
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(16), np.arange(16)))
    index = hilbert_index(x, y, 4)
    assert sorted(index.tolist()) == list(range(256))
    path = np.argsort(index)
    steps = np.abs(np.diff(x[path])) + np.abs(np.diff(y[path]))
    assert np.all(steps == 1)


def test_orders_are_permutations() -> None:
    found = orders(1000, np.random.default_rng(0))
    assert {name: sorted(rows.tolist()) == list(range(1000)) for name, rows in found.items()} == dict.fromkeys(
        ("id", "frequency", "hilbert", "random", "ulam"), True
    )


def test_a_sorted_scatter_has_the_bits_of_one_in_the_order_of_the_rows() -> None:
    random = np.random.default_rng(0)
    ids, dx = random.integers(0, 7, 60).astype(np.int32), random.standard_normal((60, 5)).astype(np.float32)
    found, expected = np.ones((2, 7, 5), np.float32)
    scatter_sorted(ids, dx, np.ones(8, np.int32), np.ones(60, np.int32), found)
    for row, token in enumerate(ids):
        expected[token] += dx[row]
    np.testing.assert_array_equal(found, expected)


def test_the_table_has_a_row_for_each_order() -> None:
    arguments = ["--vocabulary", "65", "--channels", "8", "--rows", "64", "--rounds", "1"]
    outcome = CliRunner().invoke(crystalline_order.main, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0
    for name in ("frequency", "ulam", "hilbert", "random", "id"):
        assert f" {name} " in outcome.output
