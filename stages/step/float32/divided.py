"""Forward and backward passes in float32 whose work teams of threads divide, in equal bits."""

from collections.abc import Mapping
from typing import Any

from threadloom.kernels import AccumulationTicket
from threadloom.kernels.common import NO_TERMS, LossTerms
from threadloom.kernels.float32 import GPT2_TEAM, LLAMA_TEAM, TeamKernels
from threadloom.stages.config import NO_DROPOUT, DropoutConfig
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.memory import MicroBatchSlot
from threadloom.stages.models import Geometry
from threadloom.stages.step import Member, Teams, Version, needs_blocks
from threadloom.stages.step.float32.compute import Float32Compute

_KERNELS: Mapping[str, TeamKernels[Any, Any, Any, Any]] = {"gpt2": GPT2_TEAM, "llama": LLAMA_TEAM}
"""Name of the architecture → its kernels."""


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
        self._of_members = _KERNELS[geometry.architecture]

    def forward(self, version: Version, slot: MicroBatchSlot) -> None:
        """Run all blocks, each member in one compiled call."""
        weights, acts = version.weights, slot.activations

        def of_member(member: Member) -> None:
            own = acts if member.scores is None else acts._replace(scores=member.scores[0])
            self._of_members.team_blocks_forward(weights, own, self._sequences, self._constants, member.place)

        self._teams.run(of_member)

    def backward(
        self, version: Version, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any,
        ticket: AccumulationTicket, terms: LossTerms = NO_TERMS,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained.

        `ticket` is that of a single writer, and `terms` are none.
        """
        weights, constants = version.weights, self._constants
        acts, targets, accumulate = slot.activations, slot.targets, ticket.accumulate
        kernels, blocks = self._of_members, needs_blocks(self._geometry, gradients)

        def of_member(member: Member) -> float:
            own = scratch if member.scores is None else scratch._replace(scores=member.scores)
            loss = kernels.team_head_backward(
                weights, acts, targets, scale, gradients, own, constants, accumulate, member.place
            )
            if blocks:
                kernels.team_blocks_backward(
                    weights, acts, gradients, own, self._sequences, constants, accumulate, member.place
                )
            return loss

        loss = self._teams.run(of_member)
        self._dropout.drop(scratch.dx, slot)
        return loss
