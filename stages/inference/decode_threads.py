"""The number of threads that divide the work of a token."""

from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.machine import thread_limit
from threadloom.stages.models import Geometry

BYTES_PER_THREAD = 1 << 23
"""Bytes of matrices that are worth a thread: it reads them in some tenths of a millisecond, and the members of a team
meet for some microseconds in each layer."""


def decode_threads(weights: ModelWeights, geometry: Geometry) -> int:
    """Return how many threads decode a model: as many as this process may use, fewer for a small model.

    The text of a seed does not depend on it.
    """
    matrices = [getattr(weights, name) for name in layout_of(geometry).decode_matrices]
    read: int = sum({id(matrix): matrix.nbytes for matrix in matrices}.values())  # a tied one once
    return max(1, min(thread_limit().count, read // BYTES_PER_THREAD))
