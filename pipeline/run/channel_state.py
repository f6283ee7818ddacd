"""The state of a channel: its fields, and the figures that any thread may read without the lock."""

from _thread import LockType, RLock
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import PostponedCalls, holds
from threadloom.pipeline.observe import ChannelStatistics
from threadloom.pipeline.policy import Admission, FifoState, Ticket, WorkerCount
from threadloom.pipeline.run.deadlock import DeadlockDetector

In = TypeVar("In")
Out = TypeVar("Out")


class ChannelState(Generic[In, Out]):
    """The fields of a channel; `Channel` has the operations that change them, under its lock."""

    def __init__(
        self,
        admission: Admission[In, Out],
        capacity: int,
        producers: int,
        clock: Callable[[], int] = perf_counter_ns,
        workers: int = 1,
        detector: DeadlockDetector | None = None,
        receive_slice: float = -1,
    ) -> None:
        self._lock = RLock()
        self._postponed = PostponedCalls()
        self._admission = admission
        self._capacity = capacity
        self._clock = clock
        self._slice = receive_slice  # longest uninterrupted wait of a receiver in seconds, -1 for no limit; see SLICE
        self._keyed = admission.keyed
        self._fits, self._store = admission.fits, admission.put
        self._ready, self._take, self._depth = admission.ready, admission.take, admission.depth
        # The queue of a FifoState, None for other policies. `put` and `get` access it directly, which takes a third off
        # the cost of a handoff. Guarded by the lock, like the admission state itself.
        self._plain: deque[Any] | None = admission.items if isinstance(admission, FifoState) else None
        # Parked threads, oldest first, each by a locked lock that `wake` or `wake_all` releases once.
        # Invariant: while something is ready and a receiver is parked, some woken receiver has yet to check: each put
        # wakes one, and a receiver that leaves something ready wakes the next. The same holds for capacity and senders.
        # While something becomes ready as time passes, one of the parked receivers waits no longer than that.
        self._senders: deque[LockType] = deque()
        self._receivers: deque[LockType] = deque()
        # Tickets of the blocked senders, by an object for each call; for keyed policies only, see _check_progress.
        # Tickets are not compared, because the `__eq__` of a user's key may raise.
        self._refused: dict[object, Ticket] = {}
        self._producers = producers  # producers that have not closed; changed by `add_producer` and `close` only
        self._consumers = WorkerCount(workers)  # workers of the downstream stage
        self._patient = 0  # blocked senders without a time limit; of keyed policies only
        self._timed = admission.timed
        self._detector = DeadlockDetector() if detector is None else detector
        self._deadlocked = False  # set once, by `fail_senders`: no thread is left that could send the missing item
        self._aborted = False  # set once, by `abort`
        self._discards = False  # set once, by `discard`
        self._truncated = False  # set once, by `truncate`
        self._held = False  # True between `hold` and `release`
        # Conditions under which the fast paths of `put` and `get` are not taken; changed by `_update_slow_paths` only.
        self._slow_put, self._slow_get = not producers, False
        # Counters, which any thread may read without the lock.
        self._put_count = self._depth_sum = self._depth_max = 0
        # Waiting threads and their waiting times as `begin_wait` sums them: adding now × waiters is the time so far.
        self._send_waits = self._receive_waits = (0, 0)

    @property
    def discards(self) -> bool:
        """True after `discard`."""
        return self._discards

    @property
    def keyed(self) -> bool:
        """True if `put` calls user functions of the policy, which may raise."""
        return self._keyed

    @property
    def workers(self) -> int:
        """Requested number of workers of the downstream stage."""
        return self._consumers.wanted

    @property
    def senders_wait(self) -> bool:
        """True while a sender waits for capacity. Read without the lock."""
        return self._send_waits[0] > 0

    @property
    def receivers_wait(self) -> bool:
        """True while a receiver waits for an item. Read without the lock."""
        return self._receive_waits[0] > 0

    @property
    def interrupted(self) -> bool:
        """True if the calling thread has been interrupted in a method of this channel."""
        return holds(self._lock)

    @property
    def depth(self) -> int:
        """Used capacity, in items or complete groups. Read without the lock."""
        return self._depth()

    def statistics(self) -> ChannelStatistics:
        """Return the current counters. Takes no lock."""
        (senders, sent), (receivers, received), items = self._send_waits, self._receive_waits, self._put_count
        now = self._clock()  # read last: every wait in progress began before
        return ChannelStatistics(
            capacity=self._capacity,
            depth=self._depth(),
            mean_depth=self._depth_sum / items if items else 0.0,
            max_depth=self._depth_max,
            items=items,
            blocked=(sent + now * senders) / 1e9,
            starved=(received + now * receivers) / 1e9,
        )
