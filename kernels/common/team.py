"""A team: the threads that divide the work of one micro-batch among them.

All members execute the same kernel, each on its own rows, heads or columns of the results, so that every sum keeps its
order and the results have the same bits in a team of any size. Between two steps of which one reads what others wrote
in the other, the members meet: `meet` returns once all of them have come there.

A member counts its meetings in a cache line of its own, which it alone writes, and waits until the others have counted
as far. It holds no GIL, looks for some microseconds, then sleeps between two looks. The wait is finite: the others are
on their way to the same meeting, or the thread that ends the team sets `stop`, and the results are discarded.
"""

import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels.common.waiting import PAUSE, Counts, load_acquire, pause, store_release
from threadloom.kernels.compiling import JIT_ENABLED, jit_strict_fp, jit_strict_inline

_CACHE_LINE = 8  # int64 elements
_LOOKS = 20_000  # before the first sleep: some 20 microseconds


class Team(NamedTuple):
    """The place of one thread in a team, with the arrays that the members share."""

    counts: NDArray[np.int64]  # (members, a cache line): element 0 counts the meetings that a member has come to
    stop: Counts  # (1,) if not 0, nobody waits, and the results are discarded
    losses: NDArray[Any]  # (R,) float64: loss of each row of the micro-batch
    member: int  # 0 .. members - 1


class Part(NamedTuple):
    """The elements ``first`` … ``last - 1`` of an axis, those of one member."""

    first: int
    last: int


def make_team(members: int, rows: int, stop: Counts) -> tuple[Team, ...]:
    """Return the places of all members of a new team, for micro-batches of `rows` rows; `stop` ends its waits."""
    counts, losses = np.zeros((members, _CACHE_LINE), np.int64), np.zeros(rows)
    return tuple(Team(counts, stop, losses, member) for member in range(members))


@jit_strict_inline
def part_of(length: int, team: Team) -> Part:
    """Return the member's part of an axis; the parts of all members cover it in their order, and some may be empty."""
    members = team.counts.shape[0]
    return Part(length * team.member // members, length * (team.member + 1) // members)


@jit_strict_inline
def part_of_units(length: int, unit: int, team: Team) -> Part:
    """Return the member's part of an axis, as `part_of`, in whole units but for the last one of the axis."""
    units = part_of((length + unit - 1) // unit, team)
    return Part(min(units.first * unit, length), min(units.last * unit, length))


if JIT_ENABLED:

    @jit_strict_fp
    def meet_with_looks(team: Team, most: int) -> None:
        """Wait until all members have come to this meeting, or the team stops; after `most` looks sleep between two."""
        stop = team.stop.ctypes.data
        wanted = team.counts[team.member, 0] + 1
        store_release(team.counts[team.member].ctypes.data, wanted)
        for member in range(team.counts.shape[0]):
            other, looks = team.counts[member].ctypes.data, 0
            while load_acquire(other) < wanted and load_acquire(stop) == 0:
                looks += 1
                if looks > most:
                    pause()

else:

    def meet_with_looks(team: Team, most: int) -> None:
        """Wait until all members have come to this meeting, or the team stops; sleep between looks."""
        team.counts[team.member, 0] += 1
        wanted = team.counts[team.member, 0]
        while (team.counts[:, 0] < wanted).any() and team.stop[0] == 0:
            time.sleep(PAUSE * 1e-6)


@jit_strict_fp
def meet(team: Team) -> None:
    """Wait until all members have come to this meeting, or the team stops."""
    meet_with_looks(team, _LOOKS)
