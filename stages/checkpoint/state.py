"""The state of a training run that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.checkpoint.base_model import BaseModel
from threadloom.stages.memory import GuardState, ScaleState
from threadloom.stages.models import EndOfText, Geometry, Shape, lora_shapes, parameter_shapes, whole_shapes

Floats = NDArray[np.float32]

BASES = "bases"
"""Name of the bases in the state of an optimizer that has its moments in rotated coordinates."""


def kept_versions(step: int, delay: int) -> range:
    """Return the versions max(step - τ, 0) to step of the weights, which a run with delay τ may read after `step`."""
    return range(max(step - delay, 0), step + 1)


@dataclass(frozen=True)
class TrainingState:
    """Everything that continues a run on the same trajectory after `step` updates.

    The arrays are read while the checkpoint is written and must not change until then: hold leases on the versions, and
    copy the optimizer's state or pause the optimizer.
    """

    step: int
    delay: int
    versions: Mapping[int, Mapping[str, Floats]]
    """Weights of each of `kept_versions(step, delay)`: of the newest all tensors, of the others the trained ones.

    Of a model with adapters, all versions have the trained ones.
    """
    optimizer: Mapping[str, Mapping[str, Floats]]
    """State of the optimizer: name → arena of the trained tensors, such as AdamW's moments `m` and `v`.

    `bases`, if any, has tensors of other shapes.

    If the versions of the run are forecasts, `forecast` is that of the newest, and `versions` has the weights for it.
    """
    config: Mapping[str, Any]
    """Resolved configuration of the run, as JSON values."""
    geometry: Geometry
    scalers: Mapping[int, ScaleState] = field(default_factory=dict)
    """State of the loss scaler for each of `versions`; empty if losses are not scaled."""
    guard: GuardState | None = None
    """State of the guard against spikes after the newest version; None without one."""
    end_of_text: EndOfText | None = None
    """The token of the tokenizer that ends a text; it is in the files for Hugging Face's libraries."""
    came_in: Path | None = None
    """The config.json of the model that the run started from, if it exists; some of its keys are kept."""
    base: BaseModel | None = None
    """The frozen model of a run with adapters, which is not in the checkpoint."""
    embedding_digest: str | None = None
    """`DerivedEmbedding.digest` of a run that trains factors of the token embedding; None for another run."""
    stored_rows: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    """Tensor → its rows in the order of the tokenizer, in which they are written; empty if they are in that order."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for an incomplete state."""
        kept = list(kept_versions(self.step, self.delay))
        if self.step < 0 or self.delay < 0 or sorted(self.versions) != kept:
            raise ValueError(
                f"checkpoint of step {self.step} with delay {self.delay}: "
                f"expected versions {kept}, got {sorted(self.versions)}"
            )
        if self.scalers and sorted(self.scalers) != kept:
            raise ValueError(f"loss scaler states: expected versions {kept}, got {sorted(self.scalers)}")
        if (self.geometry.lora is None) != (self.base is None):
            raise ValueError(f"{self.geometry}: a model with adapters, and only that, has a base model")
        shapes, trained = whole_shapes(self.geometry), self._trained_shapes()
        tensors = {**self._like_weights(), **{f"version {k}": arena for k, arena in self.versions.items()}}
        for label, found in tensors.items():
            expected = shapes if label == f"version {self.step}" and self.base is None else trained
            if {name: view.shape for name, view in found.items()} != expected:
                raise ValueError(f"the tensors of {label} do not have the shapes of {self.geometry}")

    def _trained_shapes(self) -> dict[str, Shape]:
        """Return name → shape of the tensors that every part of the optimizer's state has."""
        shapes, arenas = parameter_shapes(self.geometry), self._like_weights().values()
        return {name: shape for name, shape in shapes.items() if all(name in arena for arena in arenas)}

    def _like_weights(self) -> dict[str, Mapping[str, Floats]]:
        """Return the parts of the optimizer's state that have the shapes of the trained tensors."""
        return {name: arena for name, arena in self.optimizer.items() if name != BASES}

    @property
    def saved_tensors(self) -> frozenset[str]:
        """Names of the tensors of the model itself that are trained."""
        return frozenset(self._trained_shapes()) - lora_shapes(self.geometry).keys()

    @property
    def nbytes(self) -> int:
        """Size of the arrays in memory, in bytes."""
        return sum(
            view.nbytes for tensors in (*self.optimizer.values(), *self.versions.values()) for view in tensors.values()
        )
