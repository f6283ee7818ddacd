"""Forward and backward passes in float32 whose work teams of threads divide, in equal bits."""

from collections.abc import Mapping
from typing import Any

from threadloom.kernels import AccumulationTicket
from threadloom.kernels.common import NO_TERMS, LossTerms
from threadloom.stages.config import NO_DROPOUT, DropoutConfig
from threadloom.stages.layouts import ModelWeights, layout_of
from threadloom.stages.memory import MicroBatchSlot
from threadloom.stages.models import Geometry
from threadloom.stages.step import DividedPasses, Teams, Version
from threadloom.stages.step.float32.compute import Float32Compute


def _with_scratch(acts: Any, scratch: Mapping[str, Any]) -> Any:
    return acts._replace(scores=scratch["scores"][0])


class DividedFloat32Compute(Float32Compute):
    """`Float32Compute` by teams, for the configurations that `stages.resolve.team` names."""

    def __init__(
        self,
        geometry: Geometry,
        sequences: int,
        teams: Teams,
        *,
        borders: bool = False,
        dropout: DropoutConfig = NO_DROPOUT,
    ) -> None:
        super().__init__(geometry, sequences, borders=borders, dropout=dropout)
        self._passes = DividedPasses(layout_of(geometry).team, geometry, sequences, teams)

    def forward(self, version: Version, slot: MicroBatchSlot) -> None:
        """Run all blocks, each member in one compiled call."""
        self._passes.forward(version.weights, slot.activations, _with_scratch, self._constants)

    def backward(
        self, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any,
        ticket: AccumulationTicket, terms: LossTerms = NO_TERMS,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained.

        `ticket` is that of a single writer, and `terms` are none.
        """
        loss = self._passes.backward(
            version.weights, slot, scale, gradients, scratch, self._constants, ticket.accumulate
        )
        self._dropout.drop(scratch.dx, slot)
        return loss
