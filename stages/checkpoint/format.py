"""The checkpoint formats that can be read.

A format determines the files in which a checkpoint stores weights and optimizer state. Atomicity, checksums and the
manifest are the same for all of them. To add one, write its class in a module of this package and add it to `FORMATS`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint.adapter_format import AdapterFormat
from threadloom.stages.checkpoint.factors_format import FactorsFormat
from threadloom.stages.checkpoint.safetensors_format import SafetensorsFormat
from threadloom.stages.checkpoint.state import TrainingState
from threadloom.stages.models import Geometry
from threadloom.stages.storage import FileDigest

Weights = Mapping[str, NDArray[np.float32]]


class CheckpointFormat(Protocol):
    """Writer and reader of the files of a training state; raises `OSError` and `CheckpointError`, respectively."""

    file_names: frozenset[str]
    """Every file name that the format may use."""

    def write(self, directory: Path, state: TrainingState) -> dict[str, FileDigest]:
        """Write a state to new files, durably; returns file name → digest."""

    def model_files(self) -> frozenset[str]:
        """Return the names of the files that hold the newest weights."""

    def training_files(self, versions: range) -> frozenset[str]:
        """Return the names of the files of a training state with these versions of the weights."""

    def read_weights(
        self, directory: Path, geometry: Geometry, versions: range, version: int, weights: Weights
    ) -> None:
        """Read one of `versions`, those in the checkpoint, into `weights`, bit for bit.

        A format without the frozen tensors leaves those as they are.
        """

    def read_optimizer(self, directory: Path, geometry: Geometry, state: Mapping[str, Weights]) -> None:
        """Read the optimizer's state into the arenas of `state`, bit for bit."""

    def read_average(self, directory: Path, weights: Weights) -> None:
        """Read the average of the weights into the tensors that were trained; the others are left as they are.

        Raises CheckpointError if there is none.
        """


FORMATS: Mapping[int, CheckpointFormat] = {1: SafetensorsFormat(), 2: AdapterFormat(), 3: FactorsFormat()}
"""Number in the manifest → format. A change that older releases would misread needs a new number."""


def written_format(geometry: Geometry) -> int:
    """Return the number of the format of new checkpoints of a model."""
    if geometry.factors:
        return 3
    return 1 if geometry.lora is None else 2


def can_hold(number: int, geometry: Geometry) -> bool:
    """Return True if checkpoints of a format can hold a model, whose factors a manifest does not record."""
    return (number == 2) == (geometry.lora is not None)
