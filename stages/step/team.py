"""Threads that divide the work of one micro-batch, where a batch has fewer micro-batches than the run has threads.

The thread of the stage is a team's first member. The others are started for a call and joined before it returns: that
takes about a tenth of a millisecond, and a pass over a micro-batch that is worth dividing takes a hundred times as
long. So no thread outlives a call, whatever ends it.

A member that fails, or a run that ends early, sets `stop`: members leave the meetings at which they wait, and the call
raises the first error, or `Cancelled`.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from threadloom.kernels.common import Team
from threadloom.pipeline import Cancelled, Pool
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory import PrecisionMemory, TeamMemory, allocate_teams

Result = TypeVar("Result")


class Member(NamedTuple):
    """One thread's place in a team."""

    place: Team
    scratch: Mapping[str, Any] | None
    """Its own fields of activations and scratch (`PrecisionMemory`); None: those of the micro-batch."""


class Teams:
    """The teams of a run, a resource of it: as many may be at work as there are micro-batches in flight."""

    def __init__(self, config: ResolvedConfig, memory: PrecisionMemory) -> None:
        self._stop = np.zeros(1, np.int64)  # only ever set to 1
        self._memory: Pool[TeamMemory] = Pool(allocate_teams(config, memory, self._stop))

    @property
    def nbytes(self) -> int:
        """Bytes of all teams."""
        return self._memory.total(lambda memory: memory.nbytes)

    def run(self, work: Callable[[Member], Result]) -> Result:
        """Call `work` for all members of a team at the same time; return the first member's result.

        Raises the first error of a member; `Cancelled` if the run was aborted meanwhile.
        """
        memory = self._memory.take()
        try:
            return self._together(memory, work)
        finally:
            self._memory.give_back(memory)

    def _together(self, memory: TeamMemory, work: Callable[[Member], Result]) -> Result:
        first, *others = map(Member, memory.places, (None, *memory.scratch))
        errors: list[BaseException] = []

        def attempt(member: Member) -> Result | None:
            try:
                return work(member)
            except BaseException as error:  # raised below, in the thread of the stage
                errors.append(error)
                self._stop[0] = 1
                return None

        caller = threading.current_thread().name
        threads = [
            threading.Thread(target=attempt, args=(member,), name=f"{caller}, member {number}")
            for number, member in enumerate(others, 1)
        ]
        started: list[threading.Thread] = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            result = work(first)
        except BaseException:
            self._stop[0] = 1
            raise
        finally:
            for thread in started:
                thread.join()
        if errors:
            raise errors[0]
        if self._stop[0]:
            raise Cancelled
        return result

    def abort(self) -> None:
        """End all waits of members for one another; calls raise `Cancelled` from now on."""
        self._stop[0] = 1
        self._memory.abort()
