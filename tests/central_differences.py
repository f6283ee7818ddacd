"""Comparison of the reference's gradients with central differences, in float64."""

from collections.abc import Callable

import numpy as np

from tests.error_bounds import FLOAT32, FLOAT64, distances
from tests.reference import Array, Tensors

STEP = 1e-3
"""Step of the differences."""


def float64_bounds(compute: Callable[[], Tensors]) -> dict[str, float]:
    """Return the distances that a float64 implementation of `compute` keeps from the exact result.

    To first order they are proportional to the unit roundoff.
    """
    return {name: FLOAT64 / FLOAT32 * bound for name, bound in distances(compute).items()}


def slope(function: Callable[[Array], float], at: Array, direction: Array) -> tuple[float, float]:
    """Return the central difference of order four, and a bound on its truncation error.

    The truncation error is proportional to step**4, so the difference of two steps, one twice the other, is 15 times
    that of the smaller. The bound has a margin of 15 for the terms of higher orders.
    """
    values = {k: function(at + k * STEP * direction) for k in (-4, -2, -1, 1, 2, 4)}

    def difference(k: int) -> float:
        return (8.0 * (values[k] - values[-k]) - (values[2 * k] - values[-2 * k])) / (12.0 * k * STEP)

    return difference(1), abs(difference(1) - difference(2))


def check_gradient(
    function: Callable[[Array], float], at: Array, gradient: Array, rng: np.random.Generator, errors: dict[str, float]
) -> None:
    """Compare a gradient with finite differences in random directions of norm one, and in single entries.

    The function is off by ``errors["value"]``, of which a difference has 18 / (12 * STEP), and the gradient by
    ``errors["gradient"]``.
    """
    assert gradient.shape == at.shape
    rounding = 1.5 * errors["value"] / STEP + errors["gradient"]
    directions = [rng.standard_normal(at.shape) for _ in range(3)]
    for _ in range(3):
        entry = np.zeros(at.shape)
        entry[tuple(int(rng.integers(size)) for size in at.shape)] = 1.0
        directions.append(entry)
    for direction in directions:
        direction = direction / np.linalg.norm(direction)
        expected, truncation = slope(function, at, direction)
        assert abs(float((gradient * direction).sum()) - expected) <= truncation + rounding


def check_backward(
    forward: Callable[..., Array],
    inputs: list[Array],
    d_out: Array,
    backward: Callable[[], tuple[Array, ...]],
    rng: np.random.Generator,
) -> None:
    """Compare the gradients of all inputs of an operation, of sum(d_out * forward), with finite differences."""
    for i, gradient in enumerate(backward()):

        def value(x: Array, i: int = i) -> float:
            return float((forward(*inputs[:i], x, *inputs[i + 1 :]) * d_out).sum())

        def results(i: int = i) -> Tensors:
            return {"value": np.array([(forward(*inputs) * d_out).sum()]), "gradient": backward()[i]}

        check_gradient(value, inputs[i], gradient, rng, float64_bounds(results))
