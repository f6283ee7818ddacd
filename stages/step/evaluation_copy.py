"""The weights that an evaluation reads in a run whose versions are forecasts."""

import numpy as np

from threadloom.pipeline import Arena, Lease, Pool
from threadloom.stages.memory import Bank


class EvaluationCopy:
    """A bank with a copy of the newest weights, for one evaluation at a time.

    The optimizer updates the weights in place, and the versions in the other banks are forecasts of later ones.
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
