"""Checkpoints while training goes on: copy what the next update will write over, lease the rest, write it in a stage.

The optimizer's moments change with every update, and at τ > 0 the older versions are soon overwritten; they are copied,
in memory set aside for it, between two updates. The newest version is leased instead: its bank stays as it is.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from pipeline import Arena, Banks, Pool
from stages.checkpoint import TrainingState, save_checkpoint
from stages.config import Config
from stages.items import Saved, Update
from stages.memory import Bank
from stages.optimizer import Moments
from stages.parameters import parameter_shapes


class Snapshot:
    """Memory for what a checkpoint copies; there is one, so a run never has two checkpoints under way."""

    def __init__(self, config: Config, banks: Banks[Bank], moments: Moments) -> None:
        geometry = config.model.geometry()
        self.moments = Moments(geometry)
        self.older = {back: Arena(parameter_shapes(geometry)) for back in range(1, config.delay + 1)}
        self._source = moments
        self._banks = banks
        self._free = Pool([self])

    @property
    def nbytes(self) -> int:
        """Bytes set aside."""
        return self.moments.nbytes + sum(arena.nbytes for arena in self.older.values())

    def acquire(self) -> None:
        """Wait until the checkpoint before has been written."""
        self._free.take()

    def copy(self, step: int) -> None:
        """Copy the moments after `step` updates and the versions before `step` that the delay still needs."""
        np.copyto(self.moments.m.flat, self._source.m.flat)
        np.copyto(self.moments.v.flat, self._source.v.flat)
        for back, arena in self.older.items():
            if step - back >= 0:
                with self._banks.lease(step - back) as lease:
                    np.copyto(arena.flat, lease.bank.arena.flat)

    def release(self) -> None:
        """Let the next checkpoint have the memory."""
        self._free.give_back(self)

    def abort(self) -> None:
        """Wake who waits for the memory with `Cancelled`."""
        self._free.abort()


class Save:
    """Writes the checkpoint of a version; `tokenizer` is the file that is put beside it.

    `ready(step)` is called before anything is written, and may wait for what must be on the disk by then.
    """

    def __init__(
        self,
        config: Config,
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
        copied = {update.step - back: arena for back, arena in self._snapshot.older.items() if update.step >= back}
        state = TrainingState(
            step=update.step,
            delay=self._config.delay,
            versions={**copied, update.step: lease.bank.arena},
            m=self._snapshot.moments.m,
            v=self._snapshot.moments.v,
            config=msgspec.to_builtins(self._config),
            geometry=self._config.model.geometry(),
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
