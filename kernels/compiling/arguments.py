"""Numba types of named tuples, found from their annotations, or from an example if they have arrays.

A named tuple groups the arguments of a kernel. Numba passes it as its fields, so a group costs nothing at run time.
"""

from enum import IntEnum
from typing import Any, get_type_hints

import numpy as np
from numba import typeof, types

_SCALARS: dict[Any, Any] = {
    bool: types.boolean,
    int: types.intp,
    float: types.float64,
    np.float32: types.float32,
}


def numba_type(annotation: Any) -> Any:
    """Return the Numba type of a scalar, of an `IntEnum`, or of a named tuple whose fields have such annotations."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if issubclass(annotation, IntEnum):
        return types.IntEnumMember(annotation, types.int64)
    hints = get_type_hints(annotation)
    return types.BaseTuple.from_types([numba_type(hints[name]) for name in annotation._fields], annotation)


def type_of(example: Any) -> Any:
    """Return the Numba type of a value. Of an array dtype, number of dimensions and order count, not the sizes."""
    return typeof(example)
