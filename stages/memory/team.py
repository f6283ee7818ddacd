"""The memory of the teams of threads that divide the work of micro-batches (`kernels.common.team`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common import Team, make_team
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory.precision_memory import PrecisionMemory, arrays_bytes

_LOSS_BYTES, _COUNT_BYTES = 8, 64


@dataclass(frozen=True)
class TeamMemory:
    """What a team needs beside the arrays of the micro-batch, for one micro-batch at a time."""

    places: tuple[Team, ...]
    scratch: tuple[Mapping[str, Any], ...]
    """Fields of activations and scratch of every member but the first, which has those of the micro-batch."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        shared = self.places[0]
        of_members = sum(arrays_bytes(tuple(fields.values())) for fields in self.scratch)
        return shared.counts.nbytes + shared.losses.nbytes + of_members


def allocate_teams(config: ResolvedConfig, memory: PrecisionMemory, stop: NDArray[np.int64]) -> list[TeamMemory]:
    """Allocate the memory of as many teams as a run may have at work; `stop` ends the waits of all.

    `memory` is that of the run's precision.
    """
    members, rows = config.threads.team, config.micro_batch * config.model.context
    return [
        TeamMemory(make_team(members, rows, stop), tuple(memory.allocate_member_scratch() for _ in range(members - 1)))
        for _ in range(config.slots)
    ]


def teams_bytes(config: ResolvedConfig, memory: PrecisionMemory) -> int:
    """Return the bytes of `allocate_teams`; 0 without teams."""
    members, rows = config.threads.team, config.micro_batch * config.model.context
    if members == 1:
        return 0
    scratch = (members - 1) * memory.member_scratch_bytes
    return config.slots * (scratch + rows * _LOSS_BYTES + members * _COUNT_BYTES)
