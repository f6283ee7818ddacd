"""Stall detection: decides from snapshots of the workers whether a run has stalled, and on what.

A run has stalled when nothing was counted anywhere for a given time *and* one of these blocks it:

- a worker inside its function or in `acquire`; the longest of them, if there are several;
- a full sink that nobody reads, while the caller waits at another sink: sinks are being drained one after the other;
- workers blocked by a full channel that hands nothing out: a join or an ordered stage that lacks an item.

It has not stalled when only sources are at work (they may be idle for good reasons), when a stage waits for its rate
limit, when the caller is elsewhere (the backpressure is the caller's own), or when the run is paused.

Everything here is a pure function or plain state, apart from threads and clocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from threadloom.pipeline.observe import NodeKind, Phase


@dataclass(frozen=True)
class WorkerSnapshot:
    """The state of one worker or sink at one moment."""

    stage: str
    """Name of the stage or sink."""
    kind: NodeKind
    worker: int
    """Index of the worker within its stage; 0 for a sink."""
    phase: Phase
    seconds: float
    """Seconds since this phase began; in a function whose calls can be given up, since the call began."""
    holds: bool = False
    """True if the worker has an item."""
    parked: bool = False
    """For a sink, True if its caller waits for an item."""
    full: bool = False
    """For a sink, True if senders wait for capacity in its channel."""
    throttled: bool = False
    """True if a worker of the stage waits for its rate limit."""


def find_blocker(snapshots: Sequence[WorkerSnapshot]) -> tuple[WorkerSnapshot, str] | None:
    """Return the worker or sink that blocks the run, with a description of its state; None if nothing blocks it."""
    stages = [each for each in snapshots if each.kind is NodeKind.STAGE]
    busy = [each for each in stages if each.phase is Phase.BUSY]
    if busy:
        return _longest(busy), "has been inside its function"
    acquiring = [each for each in stages if each.phase is Phase.WAITING and each.holds]
    if any(each.throttled for each in acquiring):
        return None
    if acquiring:
        return _longest(acquiring), "has been waiting in `acquire`"
    blocked = [each for each in snapshots if each.kind is not NodeKind.SINK and each.phase is Phase.BLOCKED]
    unread = [each for each in snapshots if each.kind is NodeKind.SINK and each.full and not each.parked]
    if unread:
        if any(each.parked for each in snapshots):
            return _longest(unread), "has been full and not read, while the caller waits at another sink,"
        return None
    if blocked:
        return _longest(blocked), "has been blocked by a full channel that hands nothing out"
    return None


def _longest(snapshots: Sequence[WorkerSnapshot]) -> WorkerSnapshot:
    return max(snapshots, key=lambda each: each.seconds)


def overdue(snapshots: Sequence[WorkerSnapshot], limits: Mapping[str, float]) -> WorkerSnapshot | None:
    """Return a worker whose item has taken longer than the time limit of its stage (`limits`: stage → seconds)."""
    no_limit = float("inf")
    late = [each for each in snapshots if each.phase is Phase.BUSY and each.seconds >= limits.get(each.stage, no_limit)]
    return _longest(late) if late else None


def next_check(snapshots: Sequence[WorkerSnapshot], limits: Mapping[str, float], after: float | None) -> float:
    """Return the seconds until the next check is due.

    The earliest of: a quarter of the stall time `after`, the time limit of an item in progress, and the time limit of
    an item that starts now.
    """
    due = [after / 4] if after is not None else []
    due += limits.values()
    busy = [each for each in snapshots if each.stage in limits and each.phase is Phase.BUSY]
    due += [limits[each.stage] - each.seconds for each in busy]
    return max(0.001, min(due))


class StallTimer:
    """The time since the last progress of a run."""

    def __init__(self, after: float, now: float) -> None:
        self._after = after
        self._since = now
        self._progress: object = None
        self._reported = False

    def update(self, now: float, progress: object, blocked: bool) -> bool:
        """Return True if a stall is to be reported now: once, and again only after progress.

        `progress` is any value that changes with each counted item; `blocked` is True if something blocks the run.
        """
        if progress != self._progress or not blocked:
            self._progress, self._since, self._reported = progress, now, False
        due = not self._reported and now - self._since >= self._after
        self._reported |= due
        return due
