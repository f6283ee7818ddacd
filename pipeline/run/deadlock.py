"""Finds out that a run cannot go on, at the moment in which that becomes certain, without polling.

A channel is in doubt while senders wait for room in it and what it lacks has not come: one of its producers may bring
it, or nobody. The doubt is certain once every worker of the run is parked at some channel, because then no one is left
who could put or take anything. So whoever parks, or ends, while there is a doubt looks *after* that: the last to do so
sees all the others, and the senders of the channel in doubt are given the error.

A caller who is elsewhere may still come to a sink: nothing is certain while a sink has an item for him, or he has not
dealt with the one before. Nor while a run is paused. Workers in their function, in `acquire`, in a pause before a retry
or at a source's `next` are not parked.

Guarantees: no false alarm, because all channels are looked at together, under all their locks. No thread holds the lock
of one channel while it waits for that of another but here, where they are taken in one order.

Ownership: `any` is raised under the lock of the channel in doubt, lowered under all the locks, and read as a glance.
"""

from collections.abc import Callable, Sequence
from typing import Protocol


class Inspectable(Protocol):
    """A channel, as far as detector are concerned."""

    def with_all_locked(self, others: "Sequence[Inspectable]", then: Callable[[], None]) -> None:
        """Call `then` while this channel and the others, one by one, hold their locks."""

    def parked(self) -> tuple[int, int]:
        """Return how many senders and receivers are parked, those woken up not among them."""

    def has_blocked_senders(self) -> bool: ...
    def held(self) -> bool: ...
    def idle(self) -> bool: ...
    def fail_senders(self) -> None: ...


class DeadlockDetector:
    """Those of one run. Nothing is certain before `watch` has said who works in it."""

    def __init__(self) -> None:
        self.suspected = False
        """Whether some channel may be in doubt, so that whoever parks has to `look`."""
        self._inner: Sequence[Inspectable] = ()
        self._sinks: Sequence[Inspectable] = ()
        self._working: Callable[[], int] | None = None

    def watch(self, inner: Sequence[Inspectable], sinks: Sequence[Inspectable], working: Callable[[], int]) -> None:
        """Take the channels in front of stages, those in front of sinks, and what counts the workers not yet ended."""
        self._inner, self._sinks, self._working = inner, sinks, working

    def stop(self) -> None:
        """Look out for nothing any more, now that the run is over."""
        self._inner, self._sinks, self._working = (), (), None

    def check(self) -> None:
        """Let the senders of the channels in doubt know if it has become certain. Called without a lock."""
        every = [*self._inner, *self._sinks]
        if every:
            every[0].with_all_locked(every[1:], self._decide)

    def _decide(self) -> None:
        doubted = [each for each in (*self._inner, *self._sinks) if each.has_blocked_senders()]
        self.suspected = bool(doubted)
        if doubted and self._all_parked():
            for each in doubted:
                each.fail_senders()

    def _all_parked(self) -> bool:
        if self._working is None or any(each.held() for each in self._inner):
            return False
        if not all(each.idle() for each in self._sinks):
            return False
        parked = sum(sum(each.parked()) for each in self._inner) + sum(each.parked()[0] for each in self._sinks)
        return parked == self._working()
