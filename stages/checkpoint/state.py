"""The state of a training run that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from threadloom.pipeline import Arena
from threadloom.stages.memory import ScaleState
from threadloom.stages.models import EndOfText, Geometry, parameter_shapes


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
    versions: Mapping[int, Arena]
    """Weights of each of `kept_versions(step, delay)`."""
    optimizer: Mapping[str, Arena]
    """State of the optimizer: name → arena, such as AdamW's moments `m` and `v`."""
    config: Mapping[str, Any]
    """Resolved configuration of the run, as JSON values."""
    geometry: Geometry
    scalers: Mapping[int, ScaleState] = field(default_factory=dict)
    """State of the loss scaler for each of `versions`; empty if losses are not scaled."""
    end_of_text: EndOfText | None = None
    """The token of the tokenizer that ends a text; it is in the files for Hugging Face's libraries."""

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
        shapes = parameter_shapes(self.geometry)
        arenas = {**self.optimizer, **{f"version {k}": arena for k, arena in self.versions.items()}}
        for label, arena in arenas.items():
            if {name: view.shape for name, view in arena.items()} != shapes:
                raise ValueError(f"the arena of {label} does not have the shapes of {self.geometry}")

    @property
    def nbytes(self) -> int:
        """Size of the arrays in memory, in bytes."""
        return sum(arena.nbytes for arena in (*self.optimizer.values(), *self.versions.values()))
