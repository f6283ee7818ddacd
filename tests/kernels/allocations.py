"""Counts of the memory allocations of compiled code."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core.runtime import _nrt_python, rtsys


def _arrays_in(value: Any) -> int:
    """Count the arrays of an argument: Numba allocates a small record for each one passed from Python."""
    if isinstance(value, tuple):
        return sum(_arrays_in(part) for part in value)
    return int(isinstance(value, np.ndarray))


def allocations(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the number of allocations of a warm call, without the records of its arguments."""
    function(*arguments)
    enabled = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats().alloc
        function(*arguments)
        return int(rtsys.get_allocation_stats().alloc) - int(before) - _arrays_in(arguments)
    finally:
        if not enabled:
            _nrt_python.memsys_disable_stats()
