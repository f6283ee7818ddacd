"""Checkpoints written while training continues.

Every update changes the optimizer's state, and at τ > 0 the older versions are soon overwritten. Either they are
copied between two updates into memory allocated for that purpose (`checkpoint.copies`), or the next update waits until
they are on disk, while forward and backward continue as far as the delay allows. The newest version is leased in both
cases, so its bank does not change.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Floats
from threadloom.pipeline import Arena, Banks, Lease, Pool
from threadloom.stages.checkpoint import BaseModel, Retention, TrainingState, kept_versions, save_checkpoint
from threadloom.stages.config import CheckpointConfig
from threadloom.stages.data import MODEL_CONFIG_FILE
from threadloom.stages.memory import Bank, Saved, ScaleState, Update, overlaid
from threadloom.stages.models import EndOfText, Geometry, Shape
from threadloom.stages.step.derived_embedding import EmbeddingFactors
from threadloom.stages.step.optimizers import FORECAST, MASTER

_PERMIT: Final = object()
"""Held by the checkpoint that is being written; there is one, so checkpoints are written one at a time."""


class CheckpointSnapshot:
    """The state that a checkpoint needs besides the newest version, constant until the checkpoint is written.

    There is one per run, so checkpoints are written one at a time. With `copies`, `optimizer` and the older versions
    are copied to memory of the snapshot; without, they are the live ones: `wait_writable` delays the next update, and
    leases keep the banks.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], banks: Banks[Bank], optimizer: Mapping[str, Arena], *, copies: bool
    ) -> None:
        """`shapes` are those of the trained tensors, `optimizer` is the live state of the optimizer."""
        self._copies = copies
        self._live = optimizer
        self._banks = banks
        self._own = [Arena(shapes) for _ in range(banks.delay)] if copies else []
        self._leases: list[Lease[Bank]] = []  # of the older versions, without copies
        self._permits = Pool([_PERMIT])
        self.optimizer = {name: _like(arena) for name, arena in optimizer.items()} if copies else optimizer
        self.older: Mapping[int, Mapping[str, Floats]] = {}
        """Older versions that the delay still needs; set by `take`, valid until `release`."""
        self.scalers: Mapping[int, ScaleState] = {}
        """Their loss scaler states; set by `take`."""

    @property
    def delay(self) -> int:
        """The delay τ of the run."""
        return self._banks.delay

    @property
    def copies(self) -> bool:
        """True if the state is copied, so that updates proceed while it is written."""
        return self._copies

    @property
    def nbytes(self) -> int:
        """Bytes allocated for copies."""
        return sum(arena.nbytes for arena in (*self.optimizer.values(), *self._own)) if self._copies else 0

    def acquire(self) -> None:
        """Wait until the previous checkpoint has been written."""
        self._permits.take()

    def wait_writable(self) -> None:
        """Wait until the next update may overwrite the state that a checkpoint needs."""
        if not self._copies:
            self._permits.give_back(self._permits.take())

    def take(self, step: int) -> None:
        """Keep the optimizer's state after `step` updates and the older versions; precedes publishing `step`."""
        self._leases = [self._banks.lease(version) for version in kept_versions(step, self.delay)[:-1]]
        self.older = {lease.version: lease.bank.trained for lease in self._leases}
        self.scalers = {lease.version: lease.bank.scaler for lease in self._leases}
        if self._copies:
            for name, live in self._live.items():
                np.copyto(self.optimizer[name].flat, live.flat)
            for copy, lease in zip(self._own, self._leases, strict=False):
                np.copyto(copy.flat, lease.bank.arena.flat[: copy.flat.size])
            self.older = dict(zip(self.older, self._own, strict=False))
            self._release_leases()

    def release(self) -> None:
        """Allow the next update, or the next checkpoint, to proceed."""
        self._release_leases()
        self._permits.give_back(_PERMIT)

    def abort(self) -> None:
        """Wake all waiters with `Cancelled`."""
        self._permits.abort()

    def _release_leases(self) -> None:
        for lease in self._leases:
            lease.release()
        self._leases = []


def _like(arena: Arena) -> Arena:
    return Arena({name: view.shape for name, view in arena.items()})


@dataclass(frozen=True)
class CheckpointOutput:
    """The folder of the checkpoints, the tokenizer file that is copied into each, and its token that ends a text.

    `base` is the frozen model of a run with adapters, which the checkpoints do not contain.

    `losses` returns the validation losses so far, step → loss, by which the best checkpoint is kept.

    `ready(step)` is called before the checkpoint of a step is written: it may wait for files that must be on disk
    first.
    """

    checkpoints: Path
    tokenizer: Path | None = None
    ready: Callable[[int], None] | None = None
    end_of_text: EndOfText | None = None
    base: BaseModel | None = None
    losses: Callable[[], Mapping[int, float]] | None = None


@dataclass(frozen=True)
class RunRecord:
    """The description of the run that every checkpoint contains, and the checkpoints to keep."""

    geometry: Geometry
    config: Mapping[str, Any]
    """The resolved configuration as JSON types."""
    keep: CheckpointConfig
    stored_rows: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    """As in `TrainingState`."""
    scaled: bool = False
    """True if losses are scaled, whose state is saved."""
    guarded: bool = False
    """True if spikes are looked for, whose state and the updates that were left out are saved."""


class Save:
    """Writes checkpoints: of the versions that are due, as a stage, and of the newest one on request."""

    def __init__(
        self,
        snapshot: CheckpointSnapshot,
        banks: Banks[Bank],
        output: CheckpointOutput,
        record: RunRecord,
        start: int,
        factors: EmbeddingFactors | None = None,
    ) -> None:
        """`start` is the version that the run starts from, which is in a checkpoint or can be initialised again.

        `factors` compute the embedding of the weights where the banks do not hold it: in a run whose versions are
        forecasts, or whose kernels read the factors.
        """
        self._factors = factors
        self._snapshot = snapshot
        self._banks = banks
        self._output = output
        self._record = record
        self._saved = start  # the newest version that needs no checkpoint; changed by the owner of the snapshot

    def acquire(self, update: Update) -> None:
        """Wait until the checkpoint may be written."""
        if self._output.ready:
            self._output.ready(update.step)

    def __call__(self, update: Update) -> Saved:
        """Write version `update.step` with all state that continues its trajectory."""
        assert update.checkpoint is not None, "only updates with a leased version reach this stage"
        saved = self._write(update.checkpoint)
        update.checkpoint.release()
        self._snapshot.release()
        return saved

    def newest(self) -> Saved | None:
        """Write the newest version, between two updates; return None if there is a checkpoint of it.

        To be called by one thread, which is not that of a stage. On failure the run can continue. `scaled` is True if
        the run scales its loss. Raises `Cancelled` if the run ends first.
        """
        snapshot = self._snapshot
        with ExitStack() as stack:
            held = stack.enter_context(ExitStack())
            step = held.enter_context(self._banks.hold())
            snapshot.acquire()
            stack.callback(snapshot.release)
            if step == self._saved:
                return None
            snapshot.take(step)
            lease = stack.enter_context(self._banks.lease(step))
            if snapshot.copies:
                held.close()
            if self._output.ready:
                self._output.ready(step)
            return self._write(lease)

    def _write(self, lease: Lease[Bank]) -> Saved:
        begin = time.perf_counter()
        record = self._record
        snapshot, step, tokenizer = self._snapshot, lease.version, self._output.tokenizer
        newest, optimizer = self._newest(lease.bank)
        state = TrainingState(
            step=step,
            delay=snapshot.delay,
            versions={**snapshot.older, step: newest},
            optimizer=optimizer,
            config=self._record.config,
            geometry=self._record.geometry,
            scalers={**snapshot.scalers, step: lease.bank.scaler} if record.scaled or record.guarded else {},
            guard=lease.bank.guard if record.guarded else None,
            end_of_text=self._output.end_of_text,
            came_in=None if tokenizer is None else tokenizer.with_name(MODEL_CONFIG_FILE),
            base=self._output.base,
            embedding_digest=self._factors.digest if self._factors else None,
            stored_rows=self._record.stored_rows,
        )
        path = save_checkpoint(self._output.checkpoints, state, tokenizer, self._retention())
        self._saved = step
        return Saved(step, str(path), time.perf_counter() - begin)

    def _retention(self) -> Retention:
        """Return the checkpoints to keep; the losses up to the newest one are known, since `ready` waits for them."""
        keep, losses = self._record.keep, self._output.losses
        return Retention(keep.keep, keep.every, losses() if keep.best and losses else {})

    def _newest(self, bank: Bank) -> tuple[Mapping[str, Floats], Mapping[str, Mapping[str, Floats]]]:
        """Return the newest weights and the optimizer's state; `bank` holds the weights, or a forecast of them."""
        tensors: Mapping[str, Floats] = bank.tensors if self._output.base is None else bank.arena
        state: dict[str, Mapping[str, Floats]] = dict(self._snapshot.optimizer)
        master = state.pop(MASTER, None)
        weights = tensors if master is None else overlaid(tensors, master)
        if self._factors and (master is not None or not self._factors.in_memory):
            weights = {**weights, **self._factors.embedding_of(weights)}
        return weights, state if master is None else {**state, FORECAST: bank.trained}


def due_every(interval: int, last: int) -> Callable[[int], bool]:
    """Return a function of the step: True every `interval` updates (0: never) and at the last one."""
    return lambda step: step == last or (interval > 0 and step % interval == 0)


def never(step: int) -> bool:
    """Return False, for an evaluation or a checkpoint that is never due."""
    return False
