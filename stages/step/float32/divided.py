"""Forward and backward passes of GPT-2 in float32 whose work teams of threads divide, in equal bits."""

from typing import Any

from threadloom.kernels import AccumulationTicket
from threadloom.kernels.common import NO_TERMS, LossTerms
from threadloom.kernels.float32 import team_blocks_backward, team_blocks_forward, team_head_backward
from threadloom.stages.config import NO_DROPOUT, DropoutConfig
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.memory import MicroBatchSlot
from threadloom.stages.models import Geometry
from threadloom.stages.step import Member, Teams, Version, needs_blocks
from threadloom.stages.step.float32.compute import Float32Compute


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
        self._teams = teams

    def forward(self, version: Version, slot: MicroBatchSlot) -> None:
        """Run all blocks, each member in one compiled call."""
        weights: Any = version.weights
        acts = slot.activations

        def of_member(member: Member) -> None:
            own = acts if member.scores is None else acts._replace(scores=member.scores[0])
            team_blocks_forward(weights, own, self._sequences, self._constants, member.place)

        self._teams.run(of_member)

    def backward(
        self, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any,
        ticket: AccumulationTicket, terms: LossTerms = NO_TERMS,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained.

        `ticket` is that of a single writer, and `terms` are none.
        """
        weights: Any = version.weights
        grads: Any = gradients
        acts, targets, accumulate = slot.activations, slot.targets, ticket.accumulate
        blocks = needs_blocks(self._geometry, gradients)

        def of_member(member: Member) -> float:
            own = scratch if member.scores is None else scratch._replace(scores=member.scores)
            loss = team_head_backward(weights, acts, targets, scale, grads, own, accumulate, member.place)
            if blocks:
                team_blocks_backward(
                    weights, acts, grads, own, self._sequences, self._constants, accumulate, member.place
                )
            return loss

        loss = self._teams.run(of_member)
        self._dropout.drop(scratch.dx, slot)
        return loss
