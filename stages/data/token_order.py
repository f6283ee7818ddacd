"""Orders of a vocabulary by the counts of its tokens: by frequency, and along the Ulam spiral.

The spiral (Ulam, 1963) visits the points of the integer grid ring after ring: number 0 in the centre, then the 8 points
at Chebyshev distance max(|x|, |y|) = 1, the 16 at distance 2, and so on. With the n-th most frequent token at its n-th
point, tokens sorted by their ring (equal ones by rank) are in the order of frequency, since the ring of n,
⌈(√(n + 1) − 1) / 2⌉, never falls. By the Manhattan distance |x| + |y|, which lies between the ring and twice the ring,
neighbouring rings mix.

An order is a pure function of the counts. It is fixed when a text is prepared.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import TokenOrder
from threadloom.stages.data.token_file import DataError
from threadloom.stages.models import VocabularyOrder

ORDER_FILE = "token_order.npy"

Ints = NDArray[np.int64]


def vocabulary_order(kind: TokenOrder, counts: Ints) -> VocabularyOrder:
    """Return an order other than that of the ids, of a vocabulary with these counts (V,) by id."""
    by_frequency = np.argsort(-counts, kind="stable")
    places = _DISTANCES[kind](np.arange(len(counts)))
    return VocabularyOrder(by_frequency[np.argsort(places, kind="stable")].astype(np.int32))


def ulam_point(number: Ints) -> tuple[Ints, Ints]:
    """Return the coordinates x and y of numbers from 0 on along the spiral, which turns left from (1, 0)."""
    ring = ulam_ring(number)
    side = 2 * ring
    # Steps along ring k from its last corner, (k, 1 - k), through the corners (k, k), (-k, k), (-k, -k) and (k, -k).
    step = number - (side - 1) ** 2
    turn = np.where(ring > 0, step // np.maximum(side, 1), 0)
    along = step - turn * side + 1
    corners = [(ring, along - ring), (ring - along, ring), (-ring, ring - along), (along - ring, -ring)]
    x = np.select([turn == index for index in range(4)], [x for x, _ in corners])
    y = np.select([turn == index for index in range(4)], [y for _, y in corners])
    return np.where(ring > 0, x, 0), np.where(ring > 0, y, 0)


def ulam_ring(number: Ints) -> Ints:
    """Return the ring of numbers from 0 on: the k with (2k − 1)² ≤ n < (2k + 1)²."""
    root = np.sqrt(number.astype(np.float64)).astype(np.int64)
    root -= root * root > number  # a rounded root may be one too large, or one too small
    root += (root + 1) ** 2 <= number
    return (root + 1) // 2


def _frequency(number: Ints) -> Ints:
    return number


def _manhattan(number: Ints) -> Ints:
    x, y = ulam_point(number)
    return np.abs(x) + np.abs(y)


_DISTANCES: Mapping[TokenOrder, Callable[[Ints], Ints]] = {
    TokenOrder.FREQUENCY: _frequency,
    TokenOrder.ULAM: ulam_ring,
    TokenOrder.ULAM_MANHATTAN: _manhattan,
}
"""Order → the distance by which tokens are sorted, as a function of their rank."""


def encode_order(order: VocabularyOrder) -> bytes:
    """Return the content of the file of an order."""
    content = io.BytesIO()
    np.save(content, order.ids.astype("<i4"))
    return content.getvalue()


def read_order(path: Path, sha256: str) -> VocabularyOrder:
    """Return the order in a file with a checksum; raises DataError for a missing or changed file."""
    try:
        content = path.read_bytes()
        got = "another content"
    except OSError as error:
        content, got = b"", error.strerror or type(error).__name__
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            str(path),
            expected="the order of the vocabulary in which the token files beside it were written",
            got=got,
            cause="the file was removed or damaged",
            hint="resume the run, which prepares its text again",
        )
    return VocabularyOrder(np.load(io.BytesIO(content)).astype(np.int32))
