"""The nearest points of the lattices Z, FCC (D3), D4 and E8, with the decoders of Conway and Sloane (1982).

D_n has the integer points with an even sum: the nearest integer point, and if its sum is odd, the coordinate that was
rounded furthest is rounded the other way. E8 is D8 and D8 shifted by ½: the nearer of two points. Every coordinate is a
multiple of ½, and with a scale that is a power of two the products are exact.
"""

from enum import IntEnum

import numpy as np

from threadloom.kernels.compiling import Floats, jit_strict_fp


class Lattice(IntEnum):
    """A lattice whose points can replace the blocks of a row."""

    Z = 1
    FCC = 2
    D4 = 3
    E8 = 4


BLOCK = {Lattice.Z: 1, Lattice.FCC: 3, Lattice.D4: 4, Lattice.E8: 8}
"""Coordinates of a point."""

_Z, _FCC, _D4 = int(Lattice.Z), int(Lattice.FCC), int(Lattice.D4)


@jit_strict_fp
def _round_to_d(x: Floats, inverse: np.float32, shift: np.float32, out: Floats) -> float:
    """Write the point of D_n + `shift` next to ``inverse * x`` to `out`, in units of the lattice; return its distance².

    The products are exact if `inverse` is a power of two, as the differences are, in float64.
    """
    total = squares = largest = 0.0
    furthest, change = 0, 1.0
    for i in range(x.shape[0]):
        value = np.float64(x[i]) * np.float64(inverse) - np.float64(shift)
        whole = np.rint(value)
        error = value - whole
        out[i] = np.float32(whole + np.float64(shift))
        total += whole
        squares += error * error
        if abs(error) > largest:
            largest, furthest = abs(error), i
            change = 1.0 if error > 0.0 else -1.0
    if total - 2.0 * np.floor(0.5 * total) != 0.0:
        out[furthest] = np.float32(np.float64(out[furthest]) + change)
        squares += 1.0 - 2.0 * largest
    return squares


@jit_strict_fp
def round_rows(rows: Floats, lattice: int, scale: float, scratch: Floats, out: Floats) -> None:
    """Write to `out` (V, C) the nearest point of ``scale`` times a `Lattice` for each block of each row of `rows`.

    A remainder of a row that is shorter than a block is rounded to Z. `scale` is a power of two; `scratch` is (8,).
    `rows` and `out` may be one array; a row depends on that row alone. A block with NaN or infinity keeps one of them.
    """
    columns = rows.shape[1]
    size = 1 if lattice == _Z else 3 if lattice == _FCC else 4 if lattice == _D4 else 8
    whole = columns - columns % size if size > 1 else 0
    inverse, step = np.float32(1.0 / scale), np.float32(scale)
    half, none = np.float32(0.5), np.float32(0.0)
    for r in range(rows.shape[0]):
        for first in range(0, whole, size):
            x, found, second = rows[r, first : first + size], scratch[:size], out[r, first : first + size]
            if size < 8:
                _round_to_d(x, inverse, none, found)
            else:
                # The second point may overwrite x, which is then no longer needed.
                distance = _round_to_d(x, inverse, none, found)
                if _round_to_d(x, inverse, half, second) < distance:
                    for i in range(size):
                        second[i] *= step
                    continue
            for i in range(size):
                second[i] = found[i] * step
        for i in range(whole, columns):
            out[r, i] = np.float32(np.rint(rows[r, i] * inverse)) * step
