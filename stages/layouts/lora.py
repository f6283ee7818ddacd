"""Constants, activations and scratch of low-rank adapters, for the layouts of all architectures.

`matrices` are those that can have adapters, in the order of the fields of `LoraConstants`.
"""

from collections.abc import Sequence

import numpy as np

from threadloom.kernels.common import NO_LORA, LoraConstants
from threadloom.stages.models import Geometry, Shape, adapted_modules, field_names, lora_scale, lora_shapes


def lora_constants(geometry: Geometry, matrices: Sequence[str]) -> LoraConstants:
    """Return the numbers of the adapters of the matrices, which are in the order of the fields of the tuple."""
    if geometry.lora is None:
        return NO_LORA
    columns: dict[str, list[tuple[int, int]]] = {name: [] for name in matrices}
    for module in adapted_modules(geometry):
        columns[module.tensor].append(module.columns)
    arrays = [np.array(columns[name], np.int64).reshape(-1, 2) for name in matrices]
    return LoraConstants(lora_scale(geometry.lora), geometry.lora.dropout, *arrays)


def lora_ranks(geometry: Geometry, tensor: str) -> int:
    """Return the ranks of the adapters of a matrix together, 0 without."""
    return lora_shapes(geometry).get(field_names(tensor)[0], (0, 0, 0))[1]


def lora_activation_shapes(geometry: Geometry, matrices: Sequence[str], rows: int) -> dict[str, Shape]:
    """Return the shapes of the inputs of the adapters' second matrices, and of the scratch of dropout."""
    n = geometry.layers
    inputs = {f"{name.removesuffix('_weight')}_xa": (n, rows, lora_ranks(geometry, name)) for name in matrices}
    return {**inputs, "dropped": (dropped_elements(geometry, rows),)}


def lora_scratch_shapes(geometry: Geometry, matrices: Sequence[str], rows: int) -> dict[str, Shape]:
    """Return the shape of the scratch of the adapters' backward pass."""
    ranks = max(lora_ranks(geometry, name) for name in matrices)
    return {"d_xa": (rows * ranks,), "dropped": (dropped_elements(geometry, rows),)}


def dropped_elements(geometry: Geometry, rows: int) -> int:
    """Return the elements of the largest input of an adapter, 0 without dropout."""
    if geometry.lora is None or not geometry.lora.dropout:
        return 0
    return rows * max(shape[2] for name, shape in lora_shapes(geometry).items() if name.endswith("_a"))
