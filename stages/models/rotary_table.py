"""Angles of rotary positions (Su et al., 2021, section 3.4.2), with the scalings that extend the context.

Frequencies and angles are computed in float64, and their cosines and sines rounded to float32 once.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.models.llama_geometry import Llama3Scaling, Rotary


class RotaryTable(NamedTuple):
    """Cosines and sines of the angle of each position and pair of dimensions."""

    cos: NDArray[np.float32]  # (context, M / 2)
    sin: NDArray[np.float32]  # (context, M / 2)


def rotary_frequencies(rotary: Rotary, head_size: int) -> NDArray[np.float64]:
    """Return the frequency of each pair of dimensions, (M / 2,), in radians per position.

    Frequency i is ``theta ** (-2 i / M)``, then scaled; M is ``rotary.dimensions``, or `head_size` if that is None.
    """
    dimensions = head_size if rotary.dimensions is None else rotary.dimensions
    frequencies = rotary.theta ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    if rotary.llama3 is not None:
        return _scaled_by_wavelength(frequencies, rotary.llama3)
    return np.asarray(frequencies / rotary.linear_factor)


def _scaled_by_wavelength(frequencies: NDArray[np.float64], scaling: Llama3Scaling) -> NDArray[np.float64]:
    """Return the frequencies f scaled as in Llama 3.1's reference code, ``apply_scaling`` of its model.py.

    With t = (L / wavelength - low) / (high - low), limited to 0 .. 1, a frequency becomes ``(1 - t) f / factor + t f``:
    long wavelengths are divided by the factor, short ones are kept.
    """
    rotations = scaling.original_context * frequencies / (2.0 * math.pi)  # L / wavelength
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return np.asarray((1.0 - kept) * frequencies / scaling.factor + kept * frequencies)


def rotary_table(rotary: Rotary, head_size: int, context: int) -> RotaryTable:
    """Return the cosines and sines of the positions 0 .. `context` - 1, as the kernels of rotary positions read them.

    Both are C-contiguous float32. `head_size` is D; with fewer rotated dimensions M the tables are narrower.
    """
    angles = np.outer(np.arange(context, dtype=np.float64), rotary_frequencies(rotary, head_size))
    return RotaryTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
