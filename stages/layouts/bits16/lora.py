"""Packed weights, activations and scratch of low-rank adapters in 16 bits, for the layouts of all architectures.

`linear` names the linear layers that can have adapters, such as "qkv".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from threadloom.kernels.matmul import PANEL
from threadloom.stages.layouts import dropped_elements, lora_ranks
from threadloom.stages.layouts.bits16.layout import FLOAT, ArraySpecs
from threadloom.stages.models import Geometry, field_names


def lora_packed_fields(linear: Sequence[str]) -> dict[str, str]:
    """Return the matrices of the adapters → fields of the packed weights, which have the same names."""
    return {field: field for name in linear for field in field_names(name)}


def lora_width(geometry: Geometry, name: str, storage: np.dtype[Any]) -> int:
    """Return the columns of the input of an adapter's second matrix: P, in bfloat16 filled up to whole panels."""
    ranks = lora_ranks(geometry, f"{name}_weight")
    return -(-ranks // PANEL) * PANEL if storage == np.uint16 else ranks


def lora_activation_specs(geometry: Geometry, linear: Sequence[str], rows: int, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of the inputs of the adapters' second matrices, and of the scratch of dropout."""
    widths = {name: lora_width(geometry, name, storage) for name in linear}
    inputs = {f"{name}_xa": ((geometry.layers, rows, width), storage) for name, width in widths.items()}
    return {**inputs, "dropped": ((dropped_elements(geometry, rows),), storage)}


def lora_scratch_specs(geometry: Geometry, linear: Sequence[str], rows: int, storage: np.dtype[Any]) -> ArraySpecs:
    """Return shape and dtype of the scratch of the adapters' backward pass."""
    size = rows * max(lora_width(geometry, name, storage) for name in linear)
    dropped = (dropped_elements(geometry, rows),)
    return {
        "d_xa": ((size,), storage),
        "xa_t": ((size,), storage),
        "dropped": (dropped, storage),
        "d_dropped": (dropped, FLOAT),
    }
