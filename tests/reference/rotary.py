"""Rotary positions in float64 (Su et al., RoFormer, 2021), by halves: dimension i of a head is paired with i + M / 2.

M is the number of dimensions that are rotated, the leading ones of a head. The frequency of pair i is
theta**(-2 i / M), unless it is scaled: divided by a factor, or by its wavelength as in Llama 3.1.
"""

import math
from dataclasses import dataclass

import numpy as np

from tests.reference.tensors import Array
from tests.rounding_marks import computed, summed


@dataclass(frozen=True)
class Llama3Scaling:
    """Scaling that divides the frequencies of long wavelengths, those of short ones not, and blends in between."""

    factor: float
    low_factor: float
    high_factor: float
    context: float  # of the model before the scaling


@dataclass(frozen=True)
class Rotary:
    """The settings of rotary positions."""

    theta: float = 10_000.0
    dimensions: int | None = None  # M; None: all of a head
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


def rotary_frequencies(rotary: Rotary, size: int) -> Array:
    """Return the angle from one position to the next, of each pair of dimensions of a head of `size`, (M / 2,)."""
    rotated = rotary.dimensions or size
    frequencies = np.array([rotary.theta ** (-2.0 * i / rotated) for i in range(rotated // 2)])
    scaling = rotary.llama3
    if scaling is None:
        return frequencies / rotary.linear_factor
    turns = scaling.context * frequencies / (2.0 * math.pi)  # context divided by wavelength
    kept = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return np.asarray((1.0 - kept) * frequencies / scaling.factor + kept * frequencies)


def rotary_tables(rotary: Rotary, size: int, tokens: int) -> tuple[Array, Array]:
    """Return cosines and sines of the angles of the first positions, (tokens, M / 2), each rounded once."""
    angles = np.outer(np.arange(tokens), rotary_frequencies(rotary, size))
    cos, sin = np.cos(angles), np.sin(angles)
    return computed(cos, lambda: np.abs(cos)), computed(sin, lambda: np.abs(sin))


def rotary_forward(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the leading dimensions of heads (B, T, heads, D) by the angles of their positions."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = [_difference(first * cos, second * sin), _difference(second * cos, -first * sin)]
    return np.concatenate([*rotated, rest], axis=-1)


def rotary_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """Return the gradient of x: the inverse rotation."""
    return rotary_forward(dy, cos, -sin)


def _difference(x: Array, y: Array) -> Array:
    return summed(x - y, 2, lambda: x**2 + y**2)
