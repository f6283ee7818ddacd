"""The order of a source with several workers: they send in turn, one element each, in the order of their indices.

The turn is an item that the workers pass on through separate channels, one per worker. A wait for the turn is
therefore a wait at a channel: it ends when the run is stopped, and deadlock detection knows about it.

Guarantees: the order of the elements depends on the iterables alone, not on threads. A worker whose iterable has ended
leaves the round, and the others continue. Elements are computed in parallel: a worker waits before it sends, with one
element.

Ownership: the ring of workers is read and changed only by the worker that has the turn.
"""

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

from threadloom.pipeline.core import Closed
from threadloom.pipeline.policy import FifoState
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.deadlock import DeadlockDetector

_TURN: Final = object()


class RoundsEnded(Exception):
    """Another worker has failed at its turn: no element is sent any longer."""


class Rounds:
    """The turns of the workers of one ordered source."""

    def __init__(
        self, workers: int, clock: Callable[[], int] = perf_counter_ns, detector: DeadlockDetector | None = None
    ) -> None:
        self.turns: list[Channel[object, object]] = [
            Channel(FifoState(1), 1, 1, clock, detector=detector) for _ in range(workers)
        ]
        """The channel of each worker, which holds an item when it is its turn."""
        self._next = [(index + 1) % workers for index in range(workers)]
        self._previous = [(index - 1) % workers for index in range(workers)]
        self._holder: int | None = None  # the worker that is sending; set by that worker only
        self.turns[0].put(_TURN)

    def sender(self, worker: int, send: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a function that waits for the turn of `worker`, sends an element, and passes the turn on."""

        def send_in_turn(element: Any) -> None:
            self._take(worker)
            send(element)
            self._holder = None
            self.turns[self._next[worker]].put(_TURN)

        return send_in_turn

    def leave(self, worker: int) -> None:
        """Wait for the turn of `worker`, take it out of the round, and pass the turn on."""
        self._take(worker)
        following, previous = self._next[worker], self._previous[worker]
        self._next[previous], self._previous[following] = following, previous
        self._holder = None
        if following != worker:
            self.turns[following].put(_TURN)

    def end(self, worker: int) -> None:
        """Wait for the turn of `worker`, and let nobody send after it: the others get RoundsEnded."""
        if self._holder != worker:
            self._take(worker)
        for turn in self.turns:
            turn.discard()

    def _take(self, worker: int) -> None:
        try:
            self.turns[worker].get()
        except Closed:
            raise RoundsEnded from None
        self._holder = worker
