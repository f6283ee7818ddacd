"""Borders of documents in the sequences of a micro-batch, across which there is no attention.

`starts` (R,) holds, for each row, the row within its sequence at which its document begins. Positions count from there.
An array without elements means that each sequence is one document. The rows of a document are computed as if they were
a sequence of their own, so their results do not depend on the other documents of the sequence.
"""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import jit_inline_body, jit_kernel

DocumentStarts = NDArray[np.int32]
"""(R,), or (0,) if each sequence is one document."""

NO_BORDERS: DocumentStarts = np.zeros(0, np.int32)
"""Each sequence is one document."""


@jit_inline_body
def position_of(row: int, length: int, starts: DocumentStarts) -> int:
    """Return the position of a row in its document; a sequence has `length` rows."""
    return row % length - (starts[row] if starts.size else 0)


@jit_kernel
def document_end(begin: int, length: int, starts: DocumentStarts) -> int:
    """Return the row after the last one of the document that begins at the row `begin`."""
    end = begin - begin % length + length
    if starts.size == 0:
        return end
    row = begin + 1
    while row < end and starts[row] == starts[begin]:
        row += 1
    return row
