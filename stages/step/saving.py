"""Checkpoints while training goes on.

The optimizer's moments change with every update, and at τ > 0 the older versions are soon overwritten. Either they are
copied between two updates, into memory set aside for it (`checkpoint.copies`), or the next update waits until they are
on the disk; forward and backward go on meanwhile as far as the delay allows. The newest version is leased in any case:
its bank stays as it is.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from threadloom.pipeline import Arena, Banks, Lease, Pool
from threadloom.stages.checkpoint import TrainingState, kept_versions, save_checkpoint
from threadloom.stages.config import ResolvedConfig
from threadloom.stages.memory import Bank, Saved, ScaleState, Update
from threadloom.stages.models import parameter_shapes
from threadloom.stages.step.optimizer import Moments

TURN: Final = object()
"""What a checkpoint holds while it is under way, since there is room for one."""


class Snapshot:
    """What a checkpoint needs besides the newest version, kept as it is until the checkpoint is written.

    There is one, so a run never has two checkpoints under way. With copies, `moments` and the older versions lie in
    memory of its own; without, they are the live ones: `hold` keeps the next update from them, leases keep the banks.
    """

    def __init__(self, config: ResolvedConfig, banks: Banks[Bank], moments: Moments) -> None:
        geometry = config.model.geometry()
        self._copies = config.checkpoint.copies
        self._delay = config.delay
        self._live = moments
        self._banks = banks
        self._own = [Arena(parameter_shapes(geometry)) for _ in range(config.delay)] if self._copies else []
        self._leases: list[Lease[Bank]] = []  # of the older versions, without copies
        self._free = Pool([TURN])
        self.moments = Moments(geometry) if self._copies else moments
        self.older: Mapping[int, Arena] = {}
        """The versions before the newest that the delay still needs; set by `take`, good until `release`."""
        self.scalers: Mapping[int, ScaleState] = {}
        """Their states of the loss scaler; set by `take` too."""

    @property
    def nbytes(self) -> int:
        """Bytes set aside."""
        return (self.moments.nbytes if self._copies else 0) + sum(arena.nbytes for arena in self._own)

    def acquire(self) -> None:
        """Wait until the checkpoint before has been written."""
        self._free.take()

    def hold(self) -> None:
        """Wait until the next update may write over what a checkpoint needs."""
        if not self._copies:
            self._free.give_back(self._free.take())

    def take(self, step: int) -> None:
        """Keep the moments after `step` updates and the older versions; called before version `step` is published."""
        self._leases = [self._banks.lease(version) for version in kept_versions(step, self._delay)[:-1]]
        self.older = {lease.version: lease.bank.arena for lease in self._leases}
        self.scalers = {lease.version: lease.bank.scaler for lease in self._leases}
        if self._copies:
            np.copyto(self.moments.m.flat, self._live.m.flat)
            np.copyto(self.moments.v.flat, self._live.v.flat)
            for copy, arena in zip(self._own, self.older.values(), strict=False):
                np.copyto(copy.flat, arena.flat)
            self.older = dict(zip(self.older, self._own, strict=False))
            self._release_leases()

    def release(self) -> None:
        """Let the next update, or the next checkpoint, go on."""
        self._release_leases()
        self._free.give_back(TURN)

    def abort(self) -> None:
        """Wake who waits with `Cancelled`."""
        self._free.abort()

    def _release_leases(self) -> None:
        for lease in self._leases:
            lease.release()
        self._leases = []


class Save:
    """Writes the checkpoint of a version; `tokenizer` is the file that is put beside it.

    `ready(step)` is called before anything is written, and may wait for what must be on the disk by then.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        snapshot: Snapshot,
        folder: Path,
        tokenizer: Path | None,
        ready: Callable[[int], None] | None = None,
    ) -> None:
        self._config = config
        self._snapshot = snapshot
        self._folder = folder
        self._tokenizer = tokenizer
        self._ready = ready

    def acquire(self, update: Update) -> None:
        """Wait until the checkpoint may stand on the disk."""
        if self._ready:
            self._ready(update.step)

    def __call__(self, update: Update) -> Saved:
        """Write version `update.step` with everything that continues its trajectory."""
        begin = time.perf_counter()
        lease = update.checkpoint
        assert lease is not None, "only updates with a leased version reach this stage"
        scalers = {**self._snapshot.scalers, update.step: lease.bank.scaler} if update.scaled else {}
        state = TrainingState(
            step=update.step,
            delay=self._config.delay,
            versions={**self._snapshot.older, update.step: lease.bank.arena},
            m=self._snapshot.moments.m,
            v=self._snapshot.moments.v,
            config=msgspec.to_builtins(self._config),
            geometry=self._config.model.geometry(),
            scalers=scalers,
        )
        path = save_checkpoint(self._folder, state, self._tokenizer, self._config.checkpoint.keep)
        lease.release()
        self._snapshot.release()
        return Saved(update.step, str(path), time.perf_counter() - begin)


def due(interval: int, last: int) -> Callable[[int], bool]:
    """Return whether something is to be done at a step: every `interval` updates (0: never) and at the last one."""
    return lambda step: step == last or (interval > 0 and step % interval == 0)


def never(step: int) -> bool:
    """What is never to be done."""
    return False
