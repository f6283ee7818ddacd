"""Deadlock detection for one run. It costs nothing while items move.

A channel is suspected of deadlock while senders are blocked on it and the item that would free capacity has not
arrived. One of its producers may still send that item. The suspicion becomes certain once every worker of the run is
parked at some channel, because no thread is left that could put or take anything: the blocked senders then raise.

A sender that has been blocked by a missing item for QUIET seconds without being woken calls `check`, and again after
each further QUIET seconds. One look at the channels serves all blocked senders of the run.

Not a deadlock: a group that is complete once its time has come; a sink that holds an item for the caller, or whose last
item the caller is still processing; a paused run; a worker inside its function, in `acquire`, in the delay before a
retry, or in `next` of a source. None of these workers is parked without a limit.

Guarantees: no false alarm. A look takes the locks of the channels one after the other, never two at once, and all
channels are looked at twice. Each wait of a worker has a separate lock object; a wait that is seen both times has
lasted all the time in between. So at the end of the first look all workers of a certain deadlock were parked at once.

Ownership: `_next` is guarded by `_turn`, which is only ever tried, never waited for.
"""

from _thread import allocate_lock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

QUIET = 0.1
"""Seconds for which a sender is blocked by a missing item before it looks for a deadlock, and between two looks."""


@dataclass(frozen=True, slots=True)
class ChannelSnapshot:
    """The state of a channel at one moment."""

    senders: tuple[object, ...]
    """One object for each wait of a sender; threads already woken are not included."""
    receivers: tuple[object, ...]
    """The same for receivers."""
    blocked: bool
    """True if senders are blocked and only an item that has not arrived can free capacity for them."""
    held: bool
    """True while the run is paused."""
    idle: bool
    """True if no item is ready, none becomes ready as time passes, and no receiver is processing one."""
    due: bool = False
    """True if an item becomes ready as time passes."""


class Inspectable(Protocol):
    """The part of a channel that deadlock detection uses."""

    def snapshot(self) -> ChannelSnapshot:
        """Return the present state."""

    def fail_senders(self) -> None:
        """Make the blocked senders raise."""


class DeadlockDetector:
    """The deadlock detector of one run; inactive until `watch` registers channels and workers."""

    def __init__(self) -> None:
        self.inner: Sequence[Inspectable] = ()
        """Input channels of stages."""
        self.sinks: Sequence[Inspectable] = ()
        """Input channels of sinks."""
        self.alive: Callable[[], int] | None = None
        """Returns the number of workers that have not ended."""
        self._turn = allocate_lock()
        self._next = 0.0  # monotonic time before which no further look is needed

    def watch(self, inner: Sequence[Inspectable], sinks: Sequence[Inspectable], alive: Callable[[], int]) -> None:
        """Start detection for these channels and workers."""
        self.inner, self.sinks, self.alive = inner, sinks, alive

    def stop(self) -> None:
        """Stop detection and drop all references, after the run has ended."""
        self.inner, self.sinks, self.alive = (), (), None

    def check(self) -> None:
        """Make the blocked senders raise if the deadlock is certain. Called without holding a lock."""
        if not self._turn.acquire(False):
            return  # another sender is looking
        try:
            if monotonic() >= self._next:
                self.look()
                self._next = monotonic() + QUIET
        finally:
            self._turn.release()

    def look(self) -> None:
        """Make the blocked senders raise if the deadlock is certain, whether or not a look is due."""
        alive = self.alive
        if alive is None:
            return
        workers = alive()
        first = self._parked_workers()
        if len(first) == workers == alive() and first == self._parked_workers():
            for each in (*self.inner, *self.sinks):
                if each.snapshot().blocked:
                    each.fail_senders()

    def _parked_workers(self) -> set[object]:
        """Return the waits of the workers that are parked; empty if the run is not deadlocked."""
        parked: set[object] = set()
        blocked = False
        for each in (channel.snapshot() for channel in self.inner):
            if each.held or each.due:
                return set()
            parked.update(each.senders, each.receivers)
            blocked |= each.blocked
        for each in (channel.snapshot() for channel in self.sinks):
            if not each.idle:
                return set()
            parked.update(each.senders)  # a receiver parked at a sink is the caller, not a worker
            blocked |= each.blocked
        return parked if blocked else set()
