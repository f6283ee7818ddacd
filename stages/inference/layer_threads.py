"""The threads that divide the layers of a prompt: the teams of training, in the bits of one thread."""

from collections.abc import Sequence
from typing import Any

from threadloom.kernels.common import ModelKernels, Team, TeamKernels, meet
from threadloom.kernels.compiling import JIT_ENABLED
from threadloom.stages.inference.member_threads import MemberThreads
from threadloom.stages.models import Geometry, LlamaGeometry

ROWS_PER_THREAD = 32
"""Tokens of a prompt that are worth a thread: the rows of a tile."""


class LayerThreads:
    """One thread or a team that runs the kernels of a layer."""

    def __init__(
        self,
        kernels: ModelKernels[Any, Any, Any, Any, Any],
        team: TeamKernels[Any, Any, Any, Any, Any],
        geometry: Geometry,
        threads: MemberThreads,
    ) -> None:
        self._kernels, self._team, self._threads = kernels, team, threads
        normed = isinstance(geometry, LlamaGeometry) and geometry.qk_norm
        self._can_divide = JIT_ENABLED and not (geometry.factors or geometry.lora or normed)

    def members(self, rows: int) -> int:
        """Return how many threads divide the layers of a prompt of `rows` tokens: all of them, or one."""
        most = self._threads.members
        return most if self._can_divide and rows >= ROWS_PER_THREAD * most else 1

    def run(self, weights: Any, activations: Sequence[Any], constants: Any) -> None:
        """Run a layer; the activations of each member are the same but for its scratch."""
        members = len(activations)
        if members == 1:
            self._kernels.blocks_forward(weights, activations[0], 1, constants)
            return

        def part(place: Team) -> None:
            self._team.team_blocks_forward(weights, activations[place.member], 1, constants, place)
            meet(place)  # all rows of the residual stream

        self._threads.run(part, members)
