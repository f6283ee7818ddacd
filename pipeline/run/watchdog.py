"""Finds a run that stands still, and an item that takes too long: decisions apart from threads, and one thread.

A run stands still when nothing was counted anywhere for `after` seconds *and* there is something that it waits for:

- a worker inside its function, or in `acquire`, is what the others wait for; the one that has been longest;
- or a sink that nobody takes from is full, while the caller waits at another: they are drained one after the other;
- or workers are blocked at a full channel that hands nothing out: a join or an order that lacks an item.

It does not when all that is at work is a source (it may be idle for good reasons), when the caller is elsewhere (it
holds the items up, and knows), or when the run is paused.

Guarantees: the thread sleeps until the next moment at which something can be due, at most four times in `after` and
once in a `limit`; it reports a standstill once, and again only after something has moved. It ends with the run. A limit
is noticed when it has passed, and not before.

Ownership: `StallTimer` belongs to the watch's thread; snapshots are what that thread saw, frozen.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.core import ItemTimeout, OneShotEvent, PipelineError, StageFailure, Stalled
from threadloom.pipeline.observe import NodeKind, Phase

LOG = logging.getLogger("threadloom.pipeline.run.watchdog")


class OnStall(Enum):
    """What is done about a run that stands still."""

    LOG = "log"
    """A warning to the logger `pipeline.run.watchdog`; it goes on waiting."""
    FAIL = "fail"
    """The run fails with a Stalled as the cause."""


@dataclass(frozen=True)
class StallReport:
    """What a run that stands still waits for."""

    stage: str
    """The stage, or the sink that nobody takes from."""
    worker: int
    """Which of its workers."""
    thread: str
    """The thread's name; empty for a sink."""
    item: str
    """The item in its hands, in words."""
    doing: str
    """What it does with it, in words."""
    seconds: float
    """For how long."""
    stack: str
    """Where the thread stands; empty for a sink."""

    def __str__(self) -> str:
        where = f"\nthread {self.thread!r} is at:\n{self.stack}" if self.thread else ""
        return (
            f"stage {self.stage!r} (worker {self.worker}) {self.doing} for {self.seconds:.3g} s, on {self.item}{where}"
        )


@dataclass(frozen=True)
class Watchdog:
    """How a run is watched; given to `start(watchdog=...)`. None there: not at all, but for limits."""

    after: float = 60.0
    """Seconds without any progress anywhere."""
    act: OnStall | Callable[[StallReport], object] = OnStall.LOG
    """What is done then; a function is called in the watch's thread, and an error in it fails the run."""

    def __post_init__(self) -> None:
        if self.after <= 0:
            raise ValueError(f"a Watchdog needs after > 0 seconds, got {self.after}")


@dataclass(frozen=True)
class WorkerSnapshot:
    """One worker or sink at one moment."""

    stage: str
    kind: NodeKind
    worker: int
    phase: Phase
    seconds: float
    """Since this phase began."""
    holds: bool = False
    """Whether it has an item in hand."""
    parked: bool = False
    """Of a sink: whether its caller waits for an item."""
    full: bool = False
    """Of a sink: whether senders wait for room in front of it."""


def find_blocker(snapshots: Sequence[WorkerSnapshot]) -> tuple[WorkerSnapshot, str] | None:
    """Return what the run waits for, and what that is doing; None if it waits for nothing of its own."""
    stages = [each for each in snapshots if each.kind is NodeKind.STAGE]
    busy = [each for each in stages if each.phase is Phase.BUSY]
    if busy:
        return _longest(busy), "has been inside its function"
    acquiring = [each for each in stages if each.phase is Phase.WAITING and each.holds]
    if acquiring:
        return _longest(acquiring), "has been waiting in `acquire`"
    blocked = [each for each in snapshots if each.kind is not NodeKind.SINK and each.phase is Phase.BLOCKED]
    unread = [each for each in snapshots if each.kind is NodeKind.SINK and each.full and not each.parked]
    if unread:
        if any(each.parked for each in snapshots):
            return _longest(unread), "is full and nobody has taken from it, while the caller waits at another sink,"
        return None
    if blocked:
        return _longest(blocked), "has been blocked at a full channel that hands nothing out"
    return None


def _longest(snapshots: Sequence[WorkerSnapshot]) -> WorkerSnapshot:
    return max(snapshots, key=lambda each: each.seconds)


def overdue(snapshots: Sequence[WorkerSnapshot], limits: Mapping[str, float]) -> WorkerSnapshot | None:
    """Return a worker whose item has taken longer than the limit of its stage."""
    late = [
        each for each in snapshots if each.phase is Phase.BUSY and each.seconds >= limits.get(each.stage, float("inf"))
    ]
    return _longest(late) if late else None


def next_check(snapshots: Sequence[WorkerSnapshot], limits: Mapping[str, float], after: float | None) -> float:
    """Return in how many seconds something can be due: a limit of an item now in work, or of one that begins now."""
    due = [after / 4] if after is not None else []
    due += limits.values()
    due += [
        limits[each.stage] - each.seconds for each in snapshots if each.stage in limits and each.phase is Phase.BUSY
    ]
    return max(0.001, min(due))


class StallTimer:
    """Since when nothing has moved."""

    def __init__(self, after: float, now: float) -> None:
        self._after = after
        self._since = now
        self._progress: object = None
        self._reported = False

    def look(self, now: float, progress: object, waits: bool) -> bool:
        """Return whether it is time to say that nothing moves. `waits`: whether there is something to wait for."""
        if progress != self._progress or not waits:
            self._progress, self._since, self._reported = progress, now, False
        due = not self._reported and now - self._since >= self._after
        self._reported |= due
        return due


@dataclass(frozen=True)
class RunInspector:
    """What the watch is given of its run."""

    look: Callable[[], tuple[object, Sequence[WorkerSnapshot]]]
    """Return a value that changes with every item counted, and all workers and sinks; no snapshots of a paused run."""
    describe: Callable[[WorkerSnapshot, str], StallReport]
    fail: Callable[[StageFailure], None]
    now: Callable[[], float]
    over: OneShotEvent


class WatchdogThread:
    """The thread that looks; `run` is its target, and `ended` opens when it has ended."""

    def __init__(self, config: Watchdog | None, limits: Mapping[str, float], run: RunInspector) -> None:
        self._config = config
        self._limits = limits
        self._run = run
        self.ended = OneShotEvent()

    def run(self) -> None:
        """Look until the run is over."""
        run, config = self._run, self._config
        timer = StallTimer(config.after, run.now()) if config else None
        snapshots: Sequence[WorkerSnapshot] = ()
        try:
            while not run.over.wait(next_check(snapshots, self._limits, config.after if config else None)):
                progress, snapshots = run.look()
                late = overdue(snapshots, self._limits)
                if late is not None:
                    self._fail_late(late)
                    return
                found = find_blocker(snapshots)
                if config and timer and timer.look(run.now(), progress, found is not None) and found is not None:
                    self._act(config, run.describe(*found))
        except Exception as error:
            run.fail(StageFailure("watchdog", 0, {}, "a standstill", error))
        finally:
            self.ended.set()

    def _fail_late(self, late: WorkerSnapshot) -> None:
        stuck = self._run.describe(late, "has been inside its function")
        limit = self._limits[late.stage]
        self._fail(stuck, ItemTimeout(f"it took longer than the limit of {limit:g} s for an item. {stuck}"))

    def _act(self, config: Watchdog, stuck: StallReport) -> None:
        message = f"nothing has moved for {config.after:g} s: {stuck}"
        match config.act:
            case OnStall.LOG:
                LOG.warning("%s", message)
            case OnStall.FAIL:
                self._fail(stuck, Stalled(message))
            case act:
                act(stuck)

    def _fail(self, stuck: StallReport, error: PipelineError) -> None:
        self._run.fail(StageFailure(stuck.stage, stuck.worker, {}, stuck.item, error))


def stack_of(thread: threading.Thread) -> str:
    """Return where a thread stands, as a traceback shows it."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "(its stack could not be read)\n"
