"""The checkpoint format: weights, optimizer state and older versions as safetensors.

===================== ==================================================================================================
model.safetensors     weights of version `step`, in Hugging Face's layout (`huggingface`)
config.json           sizes of the model, for `GPT2LMHeadModel.from_pretrained`
generation_config.json, tokenizer_config.json
                      the token that ends a text, for Hugging Face's libraries; nothing here reads them back
optimizer.safetensors state of the optimizer for the trained tensors as `<name>.*`, such as AdamW's `m.*` and `v.*`;
                      `bases.*` are those of rotated coordinates
versions.safetensors  trained weights of versions max(step - τ, 0) to step - 1 as `<version>.*`; absent if none
===================== ==================================================================================================

Tensors are read back bit for bit. Rows of a vocabulary are in the order of the tokenizer, also if the run has another.
"""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint.huggingface import GENERATION_FILE, TOKENIZER_CONFIG_FILE, write_model
from threadloom.stages.checkpoint.model_reader import read_model
from threadloom.stages.checkpoint.state import BASES, TrainingState, kept_versions
from threadloom.stages.models import Geometry
from threadloom.stages.storage import CONFIG_FILE, MODEL_FILE, CheckpointError, FileDigest, open_tensors, write_tensors

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]

OPTIMIZER_FILE = "optimizer.safetensors"
VERSIONS_FILE = "versions.safetensors"
AVERAGE = "ema"
"""Name of the average of the weights, beside the optimizer's state."""


class SafetensorsFormat:
    """Implementation of `CheckpointFormat` described above."""

    file_names = frozenset(
        {MODEL_FILE, CONFIG_FILE, GENERATION_FILE, TOKENIZER_CONFIG_FILE, OPTIMIZER_FILE, VERSIONS_FILE}
    )

    def write(self, directory: Path, state: TrainingState) -> dict[str, FileDigest]:
        """Write a state to new files, durably; returns file name → digest."""
        files = self._write_newest(directory, state)
        tensors: dict[str, Floats] = {}
        for name, arena in state.optimizer.items():
            tensors |= _with_prefix(name, arena)
        rows = _with_prefixes(state.optimizer.keys() - {BASES}, state.stored_rows)
        files[OPTIMIZER_FILE] = write_tensors(directory / OPTIMIZER_FILE, tensors, {}, rows=rows)
        older: dict[str, Floats] = {}
        for version in kept_versions(state.step, state.delay)[:-1]:
            older |= _with_prefix(str(version), state.versions[version])
        if older:
            rows = _with_prefixes(map(str, state.versions), state.stored_rows)
            files[VERSIONS_FILE] = write_tensors(directory / VERSIONS_FILE, older, {}, rows=rows)
        return files

    def model_files(self) -> frozenset[str]:
        """Return the names of the files that hold the newest weights."""
        return frozenset({MODEL_FILE, CONFIG_FILE})

    def training_files(self, versions: range) -> frozenset[str]:
        """Return the names of the files of a training state with these versions of the weights."""
        older = {VERSIONS_FILE} if len(versions) > 1 else set[str]()
        return self.model_files() | {OPTIMIZER_FILE} | older

    def read_weights(
        self, directory: Path, geometry: Geometry, versions: range, version: int, weights: Weights
    ) -> None:
        """Read one of `versions`, those in the checkpoint, into `weights`."""
        if version == versions[-1]:
            self._read_newest(directory, geometry, weights)
        else:
            tensors = {str(older): weights for older in versions[:-1]}  # all have the same shapes
            _read(directory / VERSIONS_FILE, tensors, {str(version)})

    def read_optimizer(self, directory: Path, geometry: Geometry, state: Mapping[str, Weights]) -> None:
        """Read the optimizer's state into the arenas of `state`."""
        _read(directory / OPTIMIZER_FILE, state, state.keys())

    def read_average(self, directory: Path, weights: Weights) -> None:
        """Read the average of the weights, of the tensors that were trained, into the tensors of that name."""
        with open_tensors(directory / OPTIMIZER_FILE) as file:
            prefix = f"{AVERAGE}."
            found = {name.removeprefix(prefix) for name in file.shapes if name.startswith(prefix)}
            if not found:
                raise CheckpointError(
                    directory,
                    expected="an average of the weights",
                    got="none",
                    cause="the run was started without optimizer.ema",
                    hint="leave --average out",
                )
            others = frozenset(name for name in file.shapes if not name.startswith(prefix))
            views = {prefix + name: weights[name] for name in found if name in weights}
            file.require({name: view.shape for name, view in views.items()}, ignored=others, cause="edited")
            for name, view in views.items():
                file.read(name, view)

    def _write_newest(self, directory: Path, state: TrainingState) -> dict[str, FileDigest]:
        newest, rows = state.versions[state.step], state.stored_rows
        return write_model(directory, newest, state.geometry, state.end_of_text, state.came_in, rows)

    def _read_newest(self, directory: Path, geometry: Geometry, weights: Weights) -> None:
        read_model(directory / MODEL_FILE, geometry, weights)


def _with_prefixes(prefixes: Iterable[str], rows: Mapping[str, NDArray[np.int32]]) -> dict[str, NDArray[np.int32]]:
    return {f"{prefix}.{name}": order for prefix in prefixes for name, order in rows.items()}


def _with_prefix(prefix: str, weights: Weights) -> dict[str, Floats]:
    return {f"{prefix}.{name}": view for name, view in weights.items()}


def _read(path: Path, tensors: Mapping[str, Weights], read: Set[str]) -> None:
    """Check that a file has exactly the tensors `<prefix>.*` of all prefixes, and read those of the prefixes `read`."""
    with open_tensors(path) as file:
        views = {prefix: _with_prefix(prefix, weights) for prefix, weights in tensors.items()}
        expected = {name: view.shape for found in views.values() for name, view in found.items()}
        file.require(expected, cause="the file is of another run")
        for prefix in sorted(read):
            for name, view in views[prefix].items():
                file.read(name, view)
