"""Compiling, caching and calling of kernels: decorators, flags, cache files, target features, entries, switches.

May import: nothing.
"""

from threadloom.kernels.compiling.arguments import numba_type as numba_type, type_of as type_of
from threadloom.kernels.compiling.arrays import Floats as Floats, TokenIds as TokenIds
from threadloom.kernels.compiling.cache import has_failed_to_save as has_failed_to_save
from threadloom.kernels.compiling.cache_folder import (
    CACHE_FOLDER as CACHE_FOLDER,
    CacheFolder as CacheFolder,
    CacheKind as CacheKind,
    write_problem as write_problem,
)
from threadloom.kernels.compiling.dispatcher import left_out as left_out
from threadloom.kernels.compiling.entry import Entry as Entry
from threadloom.kernels.compiling.jit import (
    JIT_ENABLED as JIT_ENABLED,
    OVERLOAD_OPTIONS as OVERLOAD_OPTIONS,
    OVERLOAD_STRICT_INLINE as OVERLOAD_STRICT_INLINE,
    SOURCES as SOURCES,
    jit_always_inline as jit_always_inline,
    jit_inline_body as jit_inline_body,
    jit_kernel as jit_kernel,
    jit_strict_fp as jit_strict_fp,
    jit_strict_inline as jit_strict_inline,
    overload_inline as overload_inline,
)
from threadloom.kernels.compiling.process_switch import ProcessSwitch as ProcessSwitch
from threadloom.kernels.compiling.target import TARGET as TARGET
