"""The checkpoint format of a run that trains factors of the token embedding.

It is `SafetensorsFormat` and one more file:

===================== ==================================================================================================
factors.safetensors   the factors of version `step`
===================== ==================================================================================================

`model.safetensors` holds the embedding that was computed from them, as of any other model. The other files have the
factors in the place of the embedding.
"""

from pathlib import Path

from threadloom.stages.checkpoint.safetensors_format import SafetensorsFormat, Weights
from threadloom.stages.checkpoint.state import TrainingState
from threadloom.stages.models import Geometry, parameter_shapes
from threadloom.stages.storage import FileDigest, open_tensors, write_tensors

FACTORS_FILE = "factors.safetensors"


class FactorsFormat(SafetensorsFormat):
    """Implementation of `CheckpointFormat` described above."""

    file_names = SafetensorsFormat.file_names | {FACTORS_FILE}

    def write(self, directory: Path, state: TrainingState) -> dict[str, FileDigest]:
        """Write a state to new files, durably; returns file name → digest."""
        newest = state.versions[state.step]
        factors = {name: newest[name] for name, _ in state.geometry.factors}
        digest = write_tensors(directory / FACTORS_FILE, factors, {})
        return super().write(directory, state) | {FACTORS_FILE: digest}

    def training_files(self, versions: range) -> frozenset[str]:
        """Return the names of the files of a training state with these versions of the weights."""
        return super().training_files(versions) | {FACTORS_FILE}

    def _read_newest(self, directory: Path, geometry: Geometry, weights: Weights) -> None:
        super()._read_newest(directory, geometry, weights)
        factors = _beside(geometry, weights)
        if factors:
            with open_tensors(directory / FACTORS_FILE) as file:
                file.require({name: view.shape for name, view in factors.items()}, cause="the file is of another run")
                for name, view in factors.items():
                    file.read(name, view)


def _beside(geometry: Geometry, weights: Weights) -> Weights:
    """Return the tensors that a model of this geometry does not have."""
    model = parameter_shapes(geometry)
    return {name: view for name, view in weights.items() if name not in model}
