"""Forward and backward passes in bfloat16 whose work teams of threads divide, in equal bits."""

from collections.abc import Mapping
from typing import Any

from threadloom.kernels import AccumulationTicket
from threadloom.kernels.common import NO_TERMS, LossTerms
from threadloom.stages.config import NO_DROPOUT, DropoutConfig, Precision
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.layouts.bits16 import bits16_layout_of
from threadloom.stages.memory import MicroBatchSlot
from threadloom.stages.models import Geometry
from threadloom.stages.step import DividedPasses, Teams, Version
from threadloom.stages.step.bits16.compute import Bits16Compute


def _with_scratch(acts: Any, scratch: Mapping[str, Any]) -> Any:
    return acts._replace(thread=scratch["thread"])


class DividedBf16Compute(Bits16Compute):
    """`Bits16Compute` in bfloat16 by teams, for the configurations that `stages.resolve.team` names."""

    def __init__(
        self,
        geometry: Geometry,
        sequences: int,
        teams: Teams,
        *,
        recompute: bool = False,
        borders: bool = False,
        dropout: DropoutConfig = NO_DROPOUT,
    ) -> None:
        super().__init__(Precision.BF16, geometry, sequences, recompute=recompute, borders=borders, dropout=dropout)
        self._passes = DividedPasses(bits16_layout_of(geometry).team, geometry, sequences, teams)

    def forward(self, version: Version, slot: MicroBatchSlot) -> None:
        """Run all blocks, each member in one compiled call."""
        self._passes.forward(self._weights(version), slot.activations, _with_scratch, self._constants)

    def backward(
        self, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any,
        ticket: AccumulationTicket, terms: LossTerms = NO_TERMS,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained.

        `ticket` is that of a single writer, and `terms` are none.
        """
        loss = self._passes.backward(
            self._weights(version), slot, scale, gradients, scratch, self._constants, ticket.accumulate
        )
        self._dropout.drop(scratch.dx, slot)
        return loss
