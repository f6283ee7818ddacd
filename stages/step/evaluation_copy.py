"""The weights that an evaluation reads if they are not a version: those under forecasts, and their moving average."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from threadloom.pipeline import Arena, Lease, Pool
from threadloom.stages.memory import Bank


class EvaluationCopy:
    """A bank with a copy of weights that every update changes in place, for one evaluation at a time.

    These are the weights of a run whose versions are forecasts of later ones, and the average of the weights.
    """

    def __init__(self, bank: Bank, master: Arena) -> None:
        """`master` holds the weights, which do not change while `take` copies them."""
        self._free = Pool([bank])
        self._master = master
        self._taken: Bank | None = None  # between acquire() and take(); one thread calls them in turn
        self.nbytes = bank.nbytes

    def acquire(self) -> None:
        """Wait until the previous evaluation has ended. Raises `Cancelled` on abort."""
        self._taken = self._free.take()

    def take(self, version: int) -> Lease[Bank]:
        """Copy the weights, which are version `version`; return the lease of the copy. `acquire` precedes it."""
        bank, self._taken = self._taken, None
        assert bank is not None, "acquire comes before take"
        np.copyto(bank.arena.flat[: self._master.flat.size], self._master.flat)
        return Lease(version, bank, lambda: self._free.give_back(bank))

    def abort(self) -> None:
        """Raise `Cancelled` in `acquire`."""
        self._free.abort()


@dataclass(frozen=True)
class EvaluationCopies:
    """The copies that a run makes for its evaluations."""

    weights: EvaluationCopy | None = None
    """Of the weights, if the versions are forecasts; None: evaluations lease a version."""
    average: EvaluationCopy | None = None
    """Of the average of the weights; None without one."""

    def __iter__(self) -> Iterator[EvaluationCopy]:
        return iter([copy for copy in (self.weights, self.average) if copy])

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(copy.nbytes for copy in self)

    def acquire(self) -> None:
        """Wait until the previous evaluation has ended. Raises `Cancelled` on abort."""
        for copy in self:
            copy.acquire()

    def abort(self) -> None:
        """Raise `Cancelled` in `acquire`."""
        for copy in self:
            copy.abort()
