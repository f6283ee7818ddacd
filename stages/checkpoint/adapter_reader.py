"""Reading adapters in PEFT's layout."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from threadloom.stages.checkpoint.adapter_tensors import adapter_views
from threadloom.stages.checkpoint.model_reader import FolderWeights, warn_of_values
from threadloom.stages.models import Geometry, Lora, architecture_of, huggingface_tied, lora_shapes
from threadloom.stages.storage import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTER_PREFIX,
    AdapterParts,
    CheckpointError,
    TensorFile,
    open_tensors,
    read_adapter_config,
    read_adapter_parts,
)

Floats = NDArray[np.float32]


class AdaptedWeights:
    """The weights of the model in one folder, and of its adapters in another. Implements `InitialWeights`."""

    def __init__(self, model: FolderWeights, folder: Path, geometry: Geometry) -> None:
        """`folder` has the adapters of `geometry`."""
        self._model, self._folder, self._geometry = model, folder, geometry

    def write(self, weights: Mapping[str, Floats]) -> None:
        """Read the given tensors: all that the adapters' folder has, or none of them; raises `CheckpointError`."""
        self._model.write(weights)
        if lora_shapes(self._geometry).keys() & weights.keys():
            read_adapter(self._folder, self._geometry, weights)

    def matrices(self, name: str) -> Iterator[Floats]:
        """Read a tensor of the model matrix after matrix; raises `CheckpointError`."""
        return self._model.matrices(name)


def read_adapter(folder: Path, geometry: Geometry, weights: Mapping[str, Floats]) -> None:
    """Read the adapters in `folder`, and the tensors that are saved as a whole, into the weights of a geometry.

    The geometry's adapters must be those in the folder; `dropout` may differ. Names, shapes and number formats are
    checked before anything is written; values that are not finite are reported as a warning. Raises CheckpointError.
    """
    config = read_adapter_config(folder)
    if config.unknown_keys:
        logger.warning("{}: ignored keys that are not known here: {}", folder, ", ".join(config.unknown_keys))
    parts = read_adapter_parts(folder, config, replace(geometry, lora=None))
    _require_same(folder, parts, geometry)
    views = adapter_views(weights, geometry, parts.saved)
    tied = {f"{ADAPTER_PREFIX}{head}" for head in huggingface_tied(geometry)} & views.keys()
    with open_tensors(folder / ADAPTER_FILE) as file:
        file.require(
            {name: view.shape for name, view in views.items()},
            cause=f"the adapters are of another model than one of {geometry}, or of another rank",
            hint="use them with the model that they were trained with",
        )
        for name in lora_shapes(geometry):
            weights[name].fill(0)  # b is zero outside the blocks of the modules
        for name in views.keys() - tied:
            file.read(name, views[name])
        for name in tied:
            _require_tied(file, name, views[name], geometry)
    warn_of_values(folder, views)


def _require_same(folder: Path, parts: AdapterParts, geometry: Geometry) -> None:
    """Raise CheckpointError if the adapters in a folder are not those of the geometry."""
    assert geometry.lora is not None
    if replace(parts.lora, dropout=geometry.lora.dropout) != geometry.lora:
        raise CheckpointError(
            folder / ADAPTER_CONFIG_FILE,
            expected=f"adapters of {_text(geometry.lora)}",
            got=f"those of {_text(parts.lora)}",
            cause="the folder has been replaced since the run was configured, or the settings lora.* were changed",
            hint="leave the settings lora.* out: they are those of the adapters that the run starts from",
        )


def _text(lora: Lora) -> str:
    scale = ", rank-stabilised" if lora.rank_stabilised else ""
    return f"rank {lora.rank}, alpha {lora.alpha:g}{scale}, for {', '.join(sorted(lora.modules))}"


def _require_tied(file: TensorFile, name: str, embedding: Floats, geometry: Geometry) -> None:
    """Raise CheckpointError unless the output projection in a file equals the token embedding, bit for bit."""
    projection = np.empty_like(embedding)
    file.read(name, projection)
    if np.array_equal(projection, embedding, equal_nan=True):
        return
    raise CheckpointError(
        file.path,
        expected=f"{name} equal to {architecture_of(geometry).huggingface.token_embedding}",
        got="different values",
        cause="config.json says that they are one tensor, but PEFT has trained two copies",
        hint="train them with `ensure_weight_tying=True` in LoraConfig, or use a model that does not tie them",
    )
