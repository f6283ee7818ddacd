"""The bounded channel between stages: many producers, many consumers, one lock and two queues of parked threads.

Guarantees: each item that is put is taken exactly once. The depth stays within the bound of the admission policy. A
full channel blocks its senders (backpressure) and an empty one its receivers, without polling. After `abort`, every
waiting and every later call raises Cancelled at once, even if items remain. After the last `close`, receivers take the
remaining items and then get Closed, and `put` raises PipelineError.

Assumptions: every producer calls `close` exactly once, after its last `put`; a worker index is used by one thread.

Ownership: the admission state and every counter are guarded by the channel's lock. A thread that has to wait parks on
a separate lock, *outside* the channel's lock, and checks again when it is woken. Compared with threading.Condition,
this is safe under Ctrl-C at any instruction of the caller's thread (the lock is held only inside a `with` and never
re-acquired in a `finally`, so a KeyboardInterrupt cannot leave it locked) and faster.

Interruption: a finaliser, a weakref callback or a signal handler may call any method, also if it has interrupted one of
the same channel in the same thread. A call that would have to wait for that thread is then carried out by another
thread (`put`, `close`, `abort`, `hold`, `release`), or raises PipelineError (`get`). A `put` or `get` of a plain FIFO
that needs not wait is made in place: the state is consistent at each instruction at which CPython can interrupt.
"""

from _thread import LockType, RLock
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any, Generic, TypeVar

from threadloom.pipeline.core import (
    AdmissionError,
    Cancelled,
    Closed,
    PipelineError,
    PostponedCalls,
    call_elsewhere,
    holds,
)
from threadloom.pipeline.observe import ChannelStatistics
from threadloom.pipeline.policy import Admission, FifoState, Ticket, WorkerCount
from threadloom.pipeline.run.deadlock import QUIET, ChannelSnapshot, DeadlockDetector
from threadloom.pipeline.run.parking import begin_wait, end_wait, park, wake, wake_all

In = TypeVar("In")
Out = TypeVar("Out")


class Channel(Generic[In, Out]):
    """A bounded queue of items (In), handed out in the form and order of its admission policy (Out: item or group)."""

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
        self._senders: deque[LockType] = deque()
        self._receivers: deque[LockType] = deque()
        # Tickets of the blocked senders, by an object for each call; for keyed policies only, see _check_progress.
        # Tickets are not compared, because the `__eq__` of a user's key may raise.
        self._refused: dict[object, Ticket] = {}
        self._producers = producers  # producers that have not closed; changed by `add_producer` and `close` only
        self._consumers = WorkerCount(workers)  # workers of the downstream stage
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

    def put(self, item: In) -> None:
        """Put `item`, waiting for capacity if the channel is full."""
        plain = self._plain
        if plain is None:
            self._put_when_room(self._admission.ticket(item), item)
            return
        with self._lock:
            if (depth := len(plain)) < self._capacity and not self._slow_put:
                plain.append(item)
                self._put_count += 1
                self._depth_sum += depth + 1
                if depth >= self._depth_max:
                    self._depth_max = depth + 1
                if self._receivers:
                    wake(self._receivers)
                return
        self._put_when_room(None, item)

    def get(self, worker: int = 0) -> Out:
        """Return the next item or group, waiting for it if necessary; raise Closed at the end of the input."""
        plain = self._plain
        with self._lock:
            if plain and not self._slow_get:
                out: Out = plain.popleft()
                if self._senders:
                    wake(self._senders)
                if plain and self._receivers:
                    wake(self._receivers)
                return out
        return self._get_when_ready(worker)

    def take_ready(self, most: int, worker: int = 0) -> list[Out]:
        """Return up to `most` items or groups that are ready, without waiting; for policies that are not exclusive."""
        taken: list[Out] = []
        with self._lock:
            while len(taken) < most and self._ready() and not self._slow_get:
                taken.append(self._hand_out(worker))
        return taken

    def done(self, worker: int = 0) -> None:
        """Report that `worker` has finished its item; an exclusive policy can then hand out the next one of its key."""
        with self._lock:
            self._admission.done(worker)
            self._wake_after_progress()

    def sent(self) -> None:
        """Report that the results of the oldest item have been sent; an ordered stage can then take more items."""
        with self._lock:
            self._admission.sent()
            self._wake_after_progress()

    def close(self) -> None:
        """Report that one producer will put nothing more."""
        if holds(self._lock):
            self._postponed.add(self.close)  # after the puts that have been postponed
            return
        with self._lock:
            self._producers -= 1
            if not self._producers:
                self._orders_changed()
                wake_all(self._senders)
            elif self._refused:
                wake_all(self._senders)  # the remaining producers may now be deadlocked: let them check

    def abort(self) -> None:
        """Make every waiting and later call raise Cancelled. May be called from any thread, any number of times."""
        if holds(self._lock):
            call_elsewhere(self.abort)
            return
        with self._lock:
            self._aborted = True
            self._orders_changed()
            wake_all(self._senders)

    def discard(self) -> None:
        """Drop every item that is put, now and from now on; receivers get Closed. For a stage that has failed."""
        with self._lock:
            self._discards = True
            self._orders_changed()
            wake_all(self._senders)

    def truncate(self) -> None:
        """Accept that the input ends anywhere: items that the policy cannot hand out are dropped, without an error."""
        with self._lock:
            self._truncated = True

    def hold(self) -> None:
        """Hand nothing out until `release`. Items can still be put while there is capacity."""
        self._set_held(held=True)

    def release(self) -> None:
        """Hand items out again after `hold`."""
        self._set_held(held=False)

    def _set_held(self, *, held: bool) -> None:
        if holds(self._lock):
            self._postponed.add(partial(self._set_held, held=held))
            return
        with self._lock:
            self._held = held
            self._orders_changed()

    def set_consumers(self, workers: int) -> int:
        """Set the number of workers of the downstream stage; return how many have to be started.

        Excess workers get Closed at their next `get`.
        """
        with self._lock:
            to_start = self._consumers.resize(workers)
            self._admission.consumers_changed(workers)
            self._orders_changed()
            return to_start

    def add_producer(self) -> bool:
        """Register one more producer; return False if all others have closed, so that it is too late."""
        with self._lock:
            self._producers += bool(self._producers)
            return bool(self._producers)

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

    # The interface of the deadlock detector.

    def snapshot(self) -> ChannelSnapshot:
        """Return the threads parked at this channel, and what they wait for."""
        with self._lock:
            return ChannelSnapshot(
                senders=tuple(self._senders),
                receivers=tuple(self._receivers),
                blocked=self._lacks_item(),
                held=self._held,
                idle=not self._ready() and not self._admission.in_hand(),
            )

    def fail_senders(self) -> None:
        """Make the blocked senders raise: no thread is left that could send the missing item."""
        with self._lock:
            self._deadlocked = True
            wake_all(self._senders)

    # From here on, all methods require the lock unless they state otherwise.

    def _lacks_item(self) -> bool:
        """Return True if senders are blocked and only an item that has not arrived can free capacity for them."""
        return bool(self._refused) and bool(self._admission.missing()) and not self._some_fit()

    def _some_fit(self) -> bool:
        return any(map(self._fits, self._refused.values()))

    def _orders_changed(self) -> None:
        """Let the receivers check again who may take items."""
        self._update_slow_paths()
        wake_all(self._receivers)

    def _update_slow_paths(self) -> None:
        self._slow_put = self._aborted or self._discards or not self._producers
        self._slow_get = self._aborted or self._discards or self._held or self._consumers.should_exit

    def _dismiss_worker(self) -> None:
        """Raise Closed for the calling worker, and pass its wake-up on to another."""
        self._consumers.leave()
        self._update_slow_paths()
        if self._ready():
            wake(self._receivers)
        raise Closed("the stage now has fewer workers")

    def _wake_after_progress(self) -> None:
        """Wake the threads that may continue after an item in hand has been finished."""
        if self._ready():
            wake(self._receivers)
        elif not self._producers:
            wake_all(self._receivers)  # this may have been the last item of the input
        else:
            wake_all(self._senders)  # with no item in hand they may be deadlocked: let them check

    def _accept(self, ticket: Ticket, item: In) -> None:
        self._store(ticket, item)
        self._put_count += 1
        depth = self._depth()
        self._depth_sum += depth
        if depth > self._depth_max:
            self._depth_max = depth
        if self._receivers and self._ready():
            wake(self._receivers)
        if self._refused:
            wake_all(self._senders)

    def _hand_out(self, worker: int) -> Out:
        out = self._take(worker)
        if self._senders:
            if self._keyed:
                wake_all(self._senders)
            else:
                wake(self._senders)
        if self._receivers and self._ready():
            wake(self._receivers)
        return out

    def _put_when_room(self, ticket: Ticket, item: In) -> None:
        """Put `item` once it fits. Called without the lock."""
        if holds(self._lock):
            self._postponed.add(partial(self.put, item))
            return
        waiting = suspected = False
        call = object()
        try:
            while True:
                with self._lock:
                    if self._aborted:
                        raise Cancelled("the channel was aborted; no item can be put")
                    if self._discards:
                        return
                    if not self._producers:
                        raise PipelineError(
                            "put() was called after the last close(), and no receiver waits for the item any longer: "
                            "put all items before close(), or create the channel with more producers"
                        )
                    if self._fits(ticket):
                        self._accept(ticket, item)
                        return
                    if not waiting:
                        waiting = True
                        self._send_waits = begin_wait(self._send_waits, self._clock())
                        if self._keyed:
                            self._refused[call] = ticket
                    if self._keyed:
                        suspected = self._check_progress()
                    parked = park(self._senders)
                    if self._plain is not None and len(self._plain) < self._capacity:
                        wake_all(self._senders)  # a `get` has interrupted this call since the look above
                while not parked.acquire(True, QUIET if suspected else -1):
                    self._detector.check()
        finally:
            if waiting:
                with self._lock:
                    self._send_waits = end_wait(self._send_waits, self._clock())
                    if self._keyed:
                        del self._refused[call]

    def _get_when_ready(self, worker: int) -> Out:
        """Return the next item or group once it is ready. Called without the lock."""
        if holds(self._lock):
            raise PipelineError(
                "get() was called by a finaliser or a signal handler that has interrupted another call of this channel "
                "in the same thread, and would wait for it: call get() elsewhere"
            )
        waiting = False
        try:
            while True:
                with self._lock:
                    if self._aborted:
                        raise Cancelled("the channel was aborted; no item can be taken")
                    if self._consumers.should_exit:
                        self._dismiss_worker()
                    if self._discards:
                        raise Closed("the stage takes no further items, because it has failed")
                    if self._ended() and not self._held:
                        self._finish_input()
                        if not self._ready():
                            raise Closed("every producer has closed, and every item has been taken")
                    if self._ready() and not self._held:
                        try:
                            return self._hand_out(worker)
                        except IndexError:
                            if self._plain is None or self._plain:
                                raise
                            continue  # a `get` has interrupted this call since the look above
                    if not waiting:
                        waiting = True
                        self._receive_waits = begin_wait(self._receive_waits, self._clock())
                    parked = park(self._receivers)
                    if self._plain and not self._held:
                        wake_all(self._receivers)  # a `put` has interrupted this call since the look above
                while not parked.acquire(timeout=self._slice):
                    pass
        finally:
            if waiting:
                with self._lock:
                    self._receive_waits = end_wait(self._receive_waits, self._clock())

    def _ended(self) -> bool:
        return not self._producers and not self._ready() and not self._admission.in_hand()

    def _finish_input(self) -> None:
        try:
            self._admission.finish()
        except AdmissionError:
            if not self._truncated:
                raise

    def _check_progress(self) -> bool:
        """Raise on deadlock: no queued item is ready, and no producer can send the missing one.

        The deadlock is certain here if every producer is blocked; the detector of the run knows about all other waits.
        Returns True if a deadlock is suspected.
        """
        missing = self._admission.missing()
        if not missing or self._some_fit():
            return False
        if self._deadlocked or len(self._refused) >= self._producers:
            raise AdmissionError(
                f"deadlock: the channel is full (capacity {self._capacity}), and the item that it has to hand out next "
                f"cannot be sent: {missing}. Items may be out of order by at most the capacity: raise it, or send them "
                f"in order"
            )
        return True
