"""Compiling, caching and calling of kernels: decorators, flags, cache files, target features, entries, switches.

May import: nothing.
"""

from threadloom.kernels.compiling.arguments import numba_type
from threadloom.kernels.compiling.arrays import Floats, TokenIds
from threadloom.kernels.compiling.cache import has_failed_to_save
from threadloom.kernels.compiling.cache_folder import CACHE_FOLDER, CacheFolder, CacheKind, write_problem
from threadloom.kernels.compiling.entry import Entry
from threadloom.kernels.compiling.jit import (
    JIT_ENABLED,
    OVERLOAD_OPTIONS,
    OVERLOAD_STRICT_INLINE,
    SOURCES_DIGEST,
    jit_always_inline,
    jit_inline_body,
    jit_kernel,
    jit_strict_fp,
    jit_strict_inline,
)
from threadloom.kernels.compiling.process_switch import ProcessSwitch
from threadloom.kernels.compiling.target import TARGET

__all__ = [
    "CACHE_FOLDER",
    "JIT_ENABLED",
    "OVERLOAD_OPTIONS",
    "OVERLOAD_STRICT_INLINE",
    "SOURCES_DIGEST",
    "TARGET",
    "CacheFolder",
    "CacheKind",
    "Entry",
    "Floats",
    "ProcessSwitch",
    "TokenIds",
    "has_failed_to_save",
    "jit_always_inline",
    "jit_inline_body",
    "jit_kernel",
    "jit_strict_fp",
    "jit_strict_inline",
    "numba_type",
    "write_problem",
]
