"""A multiply-add in kernels that are compiled without reassociation."""

import numpy as np

from threadloom.kernels.compiling import jit_always_inline


@jit_always_inline
def plus_product(total: np.float32, a: np.float32, b: np.float32) -> np.float32:
    """Return ``total + a * b``, rounded once where the processor can: also in a loop that allows no other rewrite."""
    return total + a * b
