"""How kernels are compiled, cached and called: decorators, compiler flags, cache entries, target features, entries.

May import: nothing of this project.
"""

from threadloom.kernels.compiling.arrays import Floats, TokenIds
from threadloom.kernels.compiling.entry import Entry
from threadloom.kernels.compiling.jit import (
    JIT_ENABLED,
    OVERLOAD_EXACT_INLINED,
    OVERLOAD_OPTIONS,
    SOURCES_DIGEST,
    exact,
    exact_inlined,
    inlined,
    kernel,
    transparent,
)
from threadloom.kernels.compiling.target import TARGET

__all__ = [
    "JIT_ENABLED",
    "OVERLOAD_EXACT_INLINED",
    "OVERLOAD_OPTIONS",
    "SOURCES_DIGEST",
    "TARGET",
    "Entry",
    "Floats",
    "TokenIds",
    "exact",
    "exact_inlined",
    "inlined",
    "kernel",
    "transparent",
]
