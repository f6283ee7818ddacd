"""The checkpoint format of runs with adapters, which PEFT opens: the frozen model is not in it.

========================= ==============================================================================================
adapter_model.safetensors adapters of version `step`, and the tensors that are trained as a whole, in PEFT's layout
adapter_config.json       the adapters' settings, and the folder of the model that they belong to
tokenizer_config.json     the token that ends a text, unless the file came with the tokenizer
optimizer.safetensors     as in the format of whole models (`safetensors_format`)
versions.safetensors      the same
========================= ==============================================================================================

The manifest has the digests of the frozen model (`base_model`). Tensors are read back bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint.adapter_reader import read_adapter
from threadloom.stages.checkpoint.adapter_writer import write_adapter
from threadloom.stages.checkpoint.huggingface import TOKENIZER_CONFIG_FILE, write_tokenizer_configuration
from threadloom.stages.checkpoint.safetensors_format import OPTIMIZER_FILE, VERSIONS_FILE, SafetensorsFormat
from threadloom.stages.checkpoint.state import TrainingState
from threadloom.stages.models import Geometry
from threadloom.stages.storage import ADAPTER_CONFIG_FILE, ADAPTER_FILE, FileDigest

Weights = Mapping[str, NDArray[np.float32]]


class AdapterFormat(SafetensorsFormat):
    """Implementation of `CheckpointFormat` described above."""

    file_names = frozenset({ADAPTER_FILE, ADAPTER_CONFIG_FILE, TOKENIZER_CONFIG_FILE, OPTIMIZER_FILE, VERSIONS_FILE})

    def model_files(self) -> frozenset[str]:
        """Return the names of the files that hold the newest adapters."""
        return frozenset({ADAPTER_FILE, ADAPTER_CONFIG_FILE})

    def _write_newest(self, directory: Path, state: TrainingState) -> dict[str, FileDigest]:
        assert state.base is not None, "TrainingState requires it"
        weights, geometry = state.versions[state.step], state.geometry
        files = write_adapter(directory, weights, geometry, state.saved_tensors, state.base.path, state.stored_rows)
        return files | write_tokenizer_configuration(directory, geometry, state.end_of_text)

    def _read_newest(self, directory: Path, geometry: Geometry, weights: Weights) -> None:
        read_adapter(directory, geometry, weights)
