"""Forward and backward passes that teams of threads divide, in any number format, in the bits of one thread."""

from collections.abc import Callable, Mapping
from typing import Any

from threadloom.kernels.common import TeamKernels
from threadloom.stages.layouts import ModelWeights
from threadloom.stages.memory import MicroBatchSlot
from threadloom.stages.models import Geometry
from threadloom.stages.step.compute import needs_blocks
from threadloom.stages.step.team import Member, Teams


class DividedPasses:
    """The passes of an architecture by teams, for the configurations that `stages.resolve.team` names."""

    def __init__(
        self, kernels: TeamKernels[Any, Any, Any, Any, Any], geometry: Geometry, sequences: int, teams: Teams
    ) -> None:
        self._kernels = kernels
        self._geometry = geometry
        self._sequences = sequences
        self._teams = teams

    def forward(
        self, weights: Any, acts: Any, with_scratch: Callable[[Any, Mapping[str, Any]], Any], constants: Any
    ) -> None:
        """Run all blocks, each member in one compiled call.

        `with_scratch` returns the activations with a member's own scratch in place of that of the micro-batch.
        """

        def of_member(member: Member) -> None:
            own = acts if member.scratch is None else with_scratch(acts, member.scratch)
            self._kernels.team_blocks_forward(weights, own, self._sequences, constants, member.place)

        self._teams.run(of_member)

    def backward(
        self, weights: Any, slot: MicroBatchSlot, scale: float, gradients: ModelWeights, scratch: Any, constants: Any,
        accumulate: bool,
    ) -> float:  # fmt: skip
        """Run the backward pass of the head, and of the blocks if a tensor below the head is trained."""
        acts, targets, kernels = slot.activations, slot.targets, self._kernels
        blocks = needs_blocks(self._geometry, gradients)

        def of_member(member: Member) -> float:
            own = scratch if member.scratch is None else scratch._replace(**member.scratch)
            loss = kernels.team_head_backward(
                weights, acts, targets, scale, gradients, own, constants, accumulate, member.place
            )
            if blocks:
                kernels.team_blocks_backward(
                    weights, acts, gradients, own, self._sequences, constants, accumulate, member.place
                )
            return loss

        return self._teams.run(of_member)
