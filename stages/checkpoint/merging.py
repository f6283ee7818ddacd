"""Merging adapters into the matrices of a model, in float32."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.pipeline import Arena, blas_threads
from threadloom.stages.checkpoint.adapter_reader import read_adapter
from threadloom.stages.checkpoint.model_reader import FolderWeights, require_memory
from threadloom.stages.models import (
    Geometry,
    adapted_modules,
    field_names,
    lora_scale,
    lora_shapes,
    parameter_shapes,
)
from threadloom.stages.storage import CONFIG_FILE, read_adapter_config, read_adapter_parts, read_geometry

Floats = NDArray[np.float32]


def merge_adapters(geometry: Geometry, weights: Mapping[str, Floats]) -> None:
    """Add scale · aᵀ b of each adapter to the columns of its module, in place, as PEFT's `merge_and_unload` does.

    The matrices are (L, inputs, outputs). The memory taken is that of one module.
    """
    assert geometry.lora is not None
    scale, rank = np.float32(lora_scale(geometry.lora)), geometry.lora.rank
    modules = [module for layer in range(geometry.layers) for module in adapted_modules(geometry, layer)]
    with blas_threads(1):  # the sums do not depend on the cores, and small products are no faster on several
        for module in modules:
            rows, columns = slice(module.first_row, module.first_row + rank), slice(*module.columns)
            a, b = (weights[name][module.layer, rows] for name in field_names(module.tensor))
            product = a.T @ b[:, columns]
            product *= scale
            weights[module.tensor][module.layer, :, columns] += product


def read_merged(base: Path, geometry: Geometry, read: Callable[[Mapping[str, Floats]], None]) -> tuple[Geometry, Arena]:
    """Return the sizes and weights of the model in `base`, into which the adapters that `read` reads are merged.

    `read` gets the tensors of `geometry`, those of the model with their values. Raises CheckpointError, also if the
    weights do not fit into the memory that is available.
    """
    plain, model = replace(geometry, lora=None), FolderWeights(base, geometry)
    require_memory(base, plain)
    weights, adapters = Arena(parameter_shapes(plain)), Arena(lora_shapes(geometry))
    tensors = {**weights, **adapters}
    model.write(weights)
    read(tensors)
    merge_adapters(geometry, tensors)
    return plain, weights


def load_merged(folder: Path, base: Path) -> tuple[Geometry, Arena]:
    """Read the model in `base`, and merge the adapters in `folder` into it; raises CheckpointError."""
    plain = read_geometry(base / CONFIG_FILE)
    parts = read_adapter_parts(folder, read_adapter_config(folder), plain)
    geometry = replace(plain, lora=parts.lora)
    return read_merged(base, geometry, partial(read_adapter, folder, geometry))
