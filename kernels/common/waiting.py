"""What threads need to wait for each other inside kernels: counts that are read and written atomically, and a pause."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""A count that one thread writes and others read, (1,)."""

PAUSE = 50
"""Microseconds of a pause: the steps that threads wait for take from tens of microseconds to tens of milliseconds."""
_INT64 = ir.IntType(64)


@intrinsic
def load_acquire(typing_context: Any, address: types.Integer) -> Any:
    """Load a count with acquire ordering: everything written before the count is visible afterwards."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], _INT64.as_pointer()), "acquire", 8)

    return types.int64(address), generate


@intrinsic
def store_release(typing_context: Any, address: types.Integer, value: types.Integer) -> Any:
    """Store a count with release ordering, after all earlier writes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _INT64.as_pointer())
        builder.store_atomic(arguments[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(address, types.int64), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Sleep for `PAUSE` (POSIX usleep)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number]), "usleep")
        builder.call(function, [ir.Constant(number, PAUSE)])
        return context.get_dummy_value()

    return types.void(), generate
