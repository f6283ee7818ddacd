"""The product of a sparse matrix with a dense one, row by row."""

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.compiling import Floats, jit_strict_fp

Indices = NDArray[np.int32]


@jit_strict_fp
def sparse_product(starts: Indices, columns: Indices, values: Floats, dense: Floats, out: Floats) -> None:
    """Compute ``out = S dense``.

    S (rows, N) has the entries `values[k]` in the columns `columns[k]` for k from `starts[row]` to `starts[row + 1]`,
    not included; `dense` is (N, C), `out` (rows, C). The terms of a row are added in the order of its entries, so the
    result of a row with the single entry 1 has the bits of a row of `dense`. Nothing is checked here.
    """
    for row in range(out.shape[0]):
        first, last = starts[row], starts[row + 1]
        if first == last:
            for c in range(out.shape[1]):
                out[row, c] = np.float32(0.0)
            continue
        value, source = values[first], columns[first]
        for c in range(out.shape[1]):
            out[row, c] = value * dense[source, c]
        for k in range(first + 1, last):
            value, source = values[k], columns[k]
            for c in range(out.shape[1]):
                out[row, c] += value * dense[source, c]
