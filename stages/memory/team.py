"""The memory of the teams of threads that divide the work of micro-batches (`kernels.common.team`)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import ATTENTION_TILE, Floats
from threadloom.kernels.common import Team, make_team
from threadloom.stages.config import ResolvedConfig

_SCORES_BYTES = 4 * 2 * ATTENTION_TILE  # for each token of the context
_LOSS_BYTES, _COUNT_BYTES = 8, 64


@dataclass(frozen=True)
class TeamMemory:
    """What a team needs beside the arrays of the micro-batch, for one micro-batch at a time."""

    places: tuple[Team, ...]
    scores: tuple[Floats, ...]
    """(2, TILE, context) scratch of every member but the first, which has that of the micro-batch."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        shared = self.places[0]
        return shared.counts.nbytes + shared.losses.nbytes + sum(array.nbytes for array in self.scores)


def allocate_teams(config: ResolvedConfig, stop: NDArray[np.int64]) -> list[TeamMemory]:
    """Allocate the memory of as many teams as a run may have at work; `stop` ends the waits of all."""
    members, rows = config.threads.team, config.micro_batch * config.model.context
    shape = (2, ATTENTION_TILE, config.model.context)
    return [
        TeamMemory(make_team(members, rows, stop), tuple(np.zeros(shape, np.float32) for _ in range(members - 1)))
        for _ in range(config.slots)
    ]


def teams_bytes(config: ResolvedConfig) -> int:
    """Return the bytes of `allocate_teams`; 0 without teams."""
    members, rows = config.threads.team, config.micro_batch * config.model.context
    scores = (members - 1) * _SCORES_BYTES * config.model.context
    return config.slots * (scores + rows * _LOSS_BYTES + members * _COUNT_BYTES) if members > 1 else 0
