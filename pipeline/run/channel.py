"""The bounded channel between stages: many producers, many consumers, one lock and two queues of parked threads.

Guarantees: what is put is taken exactly once; the depth stays within the bound of the admission policy; a full channel
blocks its senders and an empty one its receivers, without polling; after `abort` every call that waits or comes raises
Cancelled at once, whatever is still inside; after the last `close` receivers take what is left and then get Closed.

Assumptions: every producer calls `close` exactly once, after its last `put`; a worker number is used by one thread.

Ownership: the admission state and every counter belong to the lock. A thread that must wait parks on a lock of its own
*outside* the channel's lock, and looks again when it is woken. That, rather than threading.Condition, is what makes a
Ctrl-C at any instruction of the caller's thread safe: the lock is only ever held inside a `with`, never re-acquired in
a `finally`, and so never left locked behind a KeyboardInterrupt. It also costs less.
"""

from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import AdmissionError, Cancelled, Closed
from threadloom.pipeline.observe import ChannelStatistics
from threadloom.pipeline.policy import Admission, FifoState, Ticket, WorkerCount
from threadloom.pipeline.run.deadlock import DeadlockDetector, Inspectable

In = TypeVar("In")
Out = TypeVar("Out")


class Channel(Generic[In, Out]):
    """What producers put (In) comes out as the admission policy hands it out (Out: an item, or a list of them)."""

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
        self._lock = allocate_lock()
        self._admission = admission
        self._capacity = capacity
        self._clock = clock
        self._slice = (
            receive_slice  # seconds that a receiver waits at a time, -1 for as long as it takes: see `gate.SLICE`
        )
        self._keyed = admission.keyed
        self._fits, self._store = admission.fits, admission.put
        self._ready, self._take, self._depth = admission.ready, admission.take, admission.depth
        # The plain queue of a Fifo, None otherwise: `put` and `get` then do by hand what FifoState would, which takes
        # a third off the cost of a hop. Only under the lock, like the state itself.
        self._plain: deque[Any] | None = admission.items if isinstance(admission, FifoState) else None
        # Parked threads, oldest first. A lock is in here locked, and is released once, by `_wake` or `_wake_all`.
        # Invariant: while something is ready and a receiver is parked, some woken receiver has yet to look: each put
        # wakes one, and whoever takes and leaves something wakes the next. The same for room and senders.
        self._senders: deque[LockType] = deque()
        self._receivers: deque[LockType] = deque()
        self._refused: list[Ticket] = []  # tickets of the blocked senders, of keyed policies alone: see _check_progress
        self._producers = producers  # producers still to close; only `close` lowers it
        self._consumers = WorkerCount(workers)  # of the stage that takes from here
        self._detector = DeadlockDetector() if detector is None else detector
        self._deadlocked = False  # set once, by `fail_senders`: nobody is left who could bring what is missing
        self._aborted = False  # set once, by `abort`
        self._held = False  # between `hold` and `release`
        self._look = False  # whether a receiver has anything of these three to look at; only `_note_orders` sets it
        # Counters. A wait in progress has its start subtracted already, so adding now × waiters gives the time so far.
        self._put_count = self._depth_sum = self._depth_max = 0
        self._send_waiters = self._send_wait = 0
        self._receive_waiters = self._receive_wait = 0

    def put(self, item: In) -> None:
        """Put `item`, waiting for room if there is none."""
        plain = self._plain
        if plain is None:
            self._put_when_room(self._admission.ticket(item), item)
            return
        with self._lock:
            if (depth := len(plain)) < self._capacity and not self._aborted:
                plain.append(item)
                self._put_count += 1
                self._depth_sum += depth + 1
                if depth >= self._depth_max:
                    self._depth_max = depth + 1
                if self._receivers:
                    _wake(self._receivers)
                return
        self._put_when_room(None, item)

    def get(self, worker: int = 0) -> Out:
        """Take what is next, waiting for it if need be; raises Closed at the end of the input."""
        plain = self._plain
        with self._lock:
            if plain and not self._look:
                out: Out = plain.popleft()
                if self._senders:
                    _wake(self._senders)
                if plain and self._receivers:
                    _wake(self._receivers)
                return out
        return self._get_when_ready(worker)

    def done(self, worker: int = 0) -> None:
        """Say that `worker` has finished what it took last; exclusive policies then hand out the next of its kind."""
        with self._lock:
            self._admission.done(worker)
            self._look_again()

    def sent(self) -> None:
        """Say that the results of the oldest item taken have left; ordered stages may then take more."""
        with self._lock:
            self._admission.sent()
            self._look_again()

    def close(self) -> None:
        """Say that one producer will put nothing more."""
        with self._lock:
            self._producers -= 1
            if not self._producers:
                _wake_all(self._receivers)
            elif self._refused:
                _wake_all(self._senders)  # those left may now be stuck for certain: let them look

    def abort(self) -> None:
        """Wake everyone with Cancelled, now and from now on. Safe from any thread, any number of times."""
        with self._lock:
            self._aborted = True
            self._note_orders()
            _wake_all(self._senders)

    def hold(self) -> None:
        """Hand nothing out until `release`. What is put goes in while there is room."""
        with self._lock:
            self._held = True
            self._note_orders()

    def release(self) -> None:
        """Hand out again."""
        with self._lock:
            self._held = False
            self._note_orders()

    def set_consumers(self, workers: int) -> int:
        """Want another number of workers; return how many have to be added. Those too many get Closed as they come."""
        with self._lock:
            added = self._consumers.resize(workers)
            self._admission.consumers_changed(workers)
            self._note_orders()
            return added

    def open(self) -> bool:
        """Expect one producer more. Return whether it may put: not if all the others are done already."""
        with self._lock:
            self._producers += bool(self._producers)
            return bool(self._producers)

    @property
    def keyed(self) -> bool:
        """Whether `put` runs functions of the policy, which may raise."""
        return self._keyed

    @property
    def workers(self) -> int:
        """How many workers are wanted to take from here."""
        return self._consumers.wanted

    @property
    def senders_wait(self) -> bool:
        """Whether somebody waits for room. A glance without the lock."""
        return self._send_waiters > 0

    @property
    def receivers_wait(self) -> bool:
        """Whether somebody waits for an item. A glance without the lock."""
        return self._receive_waiters > 0

    @property
    def depth(self) -> int:
        """How much of the capacity is in use: items, or complete groups. A glance without the lock."""
        return self._depth()

    def statistics(self) -> ChannelStatistics:
        """Return the counters as of now."""
        with self._lock:
            now = self._clock()
            return ChannelStatistics(
                capacity=self._capacity,
                depth=self._depth(),
                mean_depth=self._depth_sum / self._put_count if self._put_count else 0.0,
                max_depth=self._depth_max,
                items=self._put_count,
                blocked=(self._send_wait + now * self._send_waiters) / 1e9,
                starved=(self._receive_wait + now * self._receive_waiters) / 1e9,
            )

    def with_all_locked(self, others: Sequence[Inspectable], then: Callable[[], None]) -> None:
        """Call `then` under the lock of this channel and of the others. Recursive, so that each is held by a `with`."""
        with self._lock:
            if others:
                others[0].with_all_locked(others[1:], then)
            else:
                then()

    # From here to the end of the two slow paths: only with the lock held, unless said otherwise.

    def parked(self) -> tuple[int, int]:
        """Return how many senders and receivers are parked, those woken up not among them."""
        return len(self._senders), len(self._receivers)

    def has_blocked_senders(self) -> bool:
        """Whether senders wait for room that is made only by an item which is still to come."""
        return bool(self._refused) and bool(self._admission.missing()) and not any(map(self._fits, self._refused))

    def held(self) -> bool:
        """Whether nothing is handed out for the time being."""
        return self._held

    def idle(self) -> bool:
        """Whether there is nothing to take, and nothing in a receiver's hands."""
        return not self._ready() and not self._admission.in_hand()

    def fail_senders(self) -> None:
        """Let the senders know that nobody is left who could bring what is missing."""
        self._deadlocked = True
        _wake_all(self._senders)

    def _note_orders(self) -> None:
        """Let the receivers see what has changed about who may take what."""
        self._look = self._aborted or self._held or self._consumers.should_exit
        _wake_all(self._receivers)

    def _dismiss_worker(self) -> None:
        """Let the worker that calls end, and another one see to what it was woken for."""
        self._consumers.leave()
        self._look = self._aborted or self._held or self._consumers.should_exit
        if self._ready():
            _wake(self._receivers)
        raise Closed("the stage has been given fewer workers")

    def _look_again(self) -> None:
        """Wake whoever may go on after something that was in hand is dealt with."""
        if self._ready():
            _wake(self._receivers)
        elif not self._producers:
            _wake_all(self._receivers)  # this may have been the last of the input
        else:
            _wake_all(self._senders)  # with nothing in hand they may be stuck for certain: let them look

    def _accept(self, ticket: Ticket, item: In) -> None:
        self._store(ticket, item)
        self._put_count += 1
        depth = self._depth()
        self._depth_sum += depth
        if depth > self._depth_max:
            self._depth_max = depth
        if self._receivers and self._ready():
            _wake(self._receivers)
        if self._refused:
            _wake_all(self._senders)

    def _hand_out(self, worker: int) -> Out:
        out = self._take(worker)
        if self._senders:
            if self._keyed:
                _wake_all(self._senders)
            else:
                _wake(self._senders)
        if self._receivers and self._ready():
            _wake(self._receivers)
        return out

    def _put_when_room(self, ticket: Ticket, item: In) -> None:
        """Called without the lock."""
        waiting = False
        try:
            while True:
                with self._lock:
                    if self._aborted:
                        raise Cancelled("the channel was aborted before there was room for its sender")
                    if self._fits(ticket):
                        self._accept(ticket, item)
                        return
                    if not waiting:
                        waiting = True
                        self._send_waiters += 1
                        self._send_wait -= self._clock()
                        if self._keyed:
                            self._refused.append(ticket)
                    if self._keyed:
                        self._check_progress()
                    parked = _park(self._senders)
                if self._detector.suspected:
                    self._detector.check()
                parked.acquire()
        finally:
            if waiting:
                with self._lock:
                    self._send_waiters -= 1
                    self._send_wait += self._clock()
                    if self._keyed:
                        self._refused.remove(ticket)

    def _get_when_ready(self, worker: int) -> Out:
        """Called without the lock."""
        waiting = False
        try:
            while True:
                with self._lock:
                    if self._aborted:
                        raise Cancelled("the channel was aborted before an item was ready for its receiver")
                    if self._consumers.should_exit:
                        self._dismiss_worker()
                    if self._ended() and not self._held:
                        self._admission.finish()
                        if not self._ready():
                            raise Closed("every producer is done and everything has been taken")
                    if self._ready() and not self._held:
                        return self._hand_out(worker)
                    if not waiting:
                        waiting = True
                        self._receive_waiters += 1
                        self._receive_wait -= self._clock()
                    parked = _park(self._receivers)
                if self._detector.suspected:
                    self._detector.check()
                while not parked.acquire(timeout=self._slice):
                    pass
        finally:
            if waiting:
                with self._lock:
                    self._receive_waiters -= 1
                    self._receive_wait += self._clock()

    def _ended(self) -> bool:
        return not self._producers and not self._ready() and not self._admission.in_hand()

    def _check_progress(self) -> None:
        """Raise rather than wait for ever: nothing that is inside can be taken, and nobody can put what it lacks.

        That is certain here if every producer is refused; the detector of the run knows
        all else that may hold them up.
        """
        missing = self._admission.missing()
        if not missing or any(map(self._fits, self._refused)):
            return
        self._detector.suspected = True
        if self._deadlocked or len(self._refused) >= self._producers:
            raise AdmissionError(
                f"the channel is full (capacity {self._capacity}) of items that wait for one still behind them: "
                f"{missing}. Items may arrive at most as far out of order as the capacity: raise it, or send in order"
            )


def _park(queue: deque[LockType]) -> LockType:
    """Return a locked lock that the next wake-up of `queue` releases; acquire it outside of the channel's lock."""
    parked = allocate_lock()
    parked.acquire()
    queue.append(parked)
    return parked


def _wake(queue: deque[LockType]) -> None:
    if queue:
        # Released before it leaves the queue: an interrupt in between must not lose a thread that sleeps.
        if queue[0].locked():
            queue[0].release()
        queue.popleft()


def _wake_all(queue: deque[LockType]) -> None:
    while queue:
        _wake(queue)
