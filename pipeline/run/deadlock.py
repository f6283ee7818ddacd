"""Deadlock detection for one run, without polling.

A channel is suspected of deadlock while senders are blocked on it and the item that would free capacity has not
arrived. One of its producers may still send that item. The suspicion becomes certain once every worker of the run is
parked at some channel, because no thread is left that could put or take anything: the blocked senders then raise.

While a deadlock is suspected, every worker calls `check` *after* it has parked and after it has ended. The last worker
to do so therefore finds all others parked.

Not a deadlock: a sink that holds an item for the caller, or whose last item the caller is still processing; a paused
run; a worker inside its function, in `acquire`, in the delay before a retry, or in `next` of a source. None of these
workers is parked.

Guarantees: no false alarm, because all channels are inspected together while all their locks are held. A thread that
holds the lock of one channel never waits for that of another, except here, where locks are acquired in one fixed order.

Ownership: `suspected` is set under the lock of the suspected channel, cleared while all locks are held, and read
without a lock as a hint.
"""

from collections.abc import Callable, Sequence
from typing import Protocol


class Inspectable(Protocol):
    """The part of a channel that deadlock detection reads. All methods but the first require the channel's lock."""

    def with_all_locked(self, others: "Sequence[Inspectable]", then: Callable[[], None]) -> None:
        """Call `then` while the locks of this channel and of `others` are held, acquired in this order."""

    def parked(self) -> tuple[int, int]:
        """Return the numbers of parked senders and parked receivers; threads already woken are not counted."""

    def has_blocked_senders(self) -> bool:
        """Return True if senders are blocked and only an item that has not arrived can free capacity for them."""

    def held(self) -> bool:
        """Return True while the run is paused."""

    def idle(self) -> bool:
        """Return True if no item is ready and no receiver is processing one."""

    def fail_senders(self) -> None:
        """Wake the blocked senders and make them raise."""


class DeadlockDetector:
    """The deadlock detector of one run; inactive until `watch` registers channels and workers."""

    def __init__(self) -> None:
        self.suspected = False
        """True while some channel may be deadlocked, so that a worker that parks or ends has to call `check`."""
        self.inner: Sequence[Inspectable] = ()
        """Input channels of stages."""
        self.sinks: Sequence[Inspectable] = ()
        """Input channels of sinks."""
        self.alive: Callable[[], int] | None = None
        """Returns the number of workers that have not ended."""

    def watch(self, inner: Sequence[Inspectable], sinks: Sequence[Inspectable], alive: Callable[[], int]) -> None:
        """Start detection for these channels and workers."""
        self.inner, self.sinks, self.alive = inner, sinks, alive

    def stop(self) -> None:
        """Stop detection and drop all references, after the run has ended."""
        self.inner, self.sinks, self.alive = (), (), None

    def check(self) -> None:
        """Make the blocked senders raise if the deadlock is certain. Call without holding a lock."""
        channels = [*self.inner, *self.sinks]
        if channels:
            channels[0].with_all_locked(channels[1:], self.decide)

    def decide(self) -> None:
        """Update `suspected`; make the blocked senders of a certain deadlock raise. Requires all channel locks."""
        suspects = [each for each in (*self.inner, *self.sinks) if each.has_blocked_senders()]
        self.suspected = bool(suspects)
        if suspects and self._all_parked():
            for each in suspects:
                each.fail_senders()

    def _all_parked(self) -> bool:
        if self.alive is None or any(each.held() for each in self.inner):
            return False
        if not all(each.idle() for each in self.sinks):
            return False
        # A receiver parked at a sink is the caller, not a worker.
        parked = sum(sum(each.parked()) for each in self.inner) + sum(each.parked()[0] for each in self.sinks)
        return parked == self.alive()
