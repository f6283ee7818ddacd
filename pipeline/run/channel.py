"""The bounded channel between stages: many producers, many consumers, one lock and two queues of parked threads.

Guarantees: each item that is put is taken exactly once. The depth stays within the bound of the admission policy. A
full channel blocks its senders (backpressure) and an empty one its receivers, without polling. After `abort`, every
waiting and every later call raises Cancelled at once, even if items remain. After the last `close`, receivers take the
remaining items and then get Closed, and `put` raises PipelineError. A call with a time limit that has passed has put or
taken nothing.

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

from _thread import LockType
from collections import deque
from functools import partial
from typing import TypeVar

from threadloom.pipeline.core import (
    AdmissionError,
    Cancelled,
    ChannelTimeout,
    Closed,
    PipelineError,
    call_elsewhere,
    holds,
)
from threadloom.pipeline.policy import Ticket
from threadloom.pipeline.run.channel_state import ChannelState
from threadloom.pipeline.run.deadlock import QUIET, ChannelSnapshot
from threadloom.pipeline.run.parking import WaitLimit, begin_wait, end_wait, park, wake, wake_all

In = TypeVar("In")
Out = TypeVar("Out")


class Channel(ChannelState[In, Out]):
    """A bounded queue of items (In), handed out in the form and order of its admission policy (Out: item or group)."""

    def put(self, item: In, timeout: float | None = None) -> None:
        """Put `item`, waiting for capacity if the channel is full.

        Raises ChannelTimeout if there is none within `timeout` seconds; 0 does not wait, None waits without a limit.
        """
        plain = self._plain
        if plain is None:
            self._put_when_room(self._admission.ticket(item), item, timeout)
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
        self._put_when_room(None, item, timeout)

    def get(self, worker: int = 0, timeout: float | None = None) -> Out:
        """Return the next item or group, waiting for it if necessary; raise Closed at the end of the input.

        Raises ChannelTimeout if there is none within `timeout` seconds; 0 does not wait, None waits without a limit.
        """
        plain = self._plain
        with self._lock:
            if plain and not self._slow_get:
                out: Out = plain.popleft()
                if self._senders:
                    wake(self._senders)
                if plain and self._receivers:
                    wake(self._receivers)
                return out
        out = self._get_when_ready(worker, timeout)
        return self._admission.arrange(out) if self._admission.arranges else out

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

    # The interface of the deadlock detector.

    def snapshot(self) -> ChannelSnapshot:
        """Return the threads parked at this channel, and the conditions that they wait for."""
        with self._lock:
            return ChannelSnapshot(
                senders=tuple(self._senders),
                receivers=tuple(self._receivers),
                blocked=self._lacks_item(),
                held=self._held,
                idle=not self._ready() and not self._admission.in_hand() and self._admission.due() is None,
                due=self._admission.due() is not None,
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
        self._wake_receiver()
        raise Closed("the stage now has fewer workers")

    def _wake_after_progress(self) -> None:
        """Wake the threads that may continue after an item in hand has been finished."""
        if self._ready() or (self._timed and self._admission.due() is not None):
            wake(self._receivers)
        elif not self._producers:
            wake_all(self._receivers)  # this may have been the last item of the input
        else:
            wake_all(self._senders)  # with no item in hand they may be deadlocked: let them check

    def _wake_receiver(self) -> None:
        """Wake a receiver if something is ready, or becomes ready as time passes."""
        if self._ready() or (self._timed and self._admission.due() is not None):
            wake(self._receivers)

    def _accept(self, ticket: Ticket, item: In) -> None:
        was_due = self._admission.due() if self._timed else None
        self._store(ticket, item)
        self._put_count += 1
        depth = self._depth()
        self._depth_sum += depth
        if depth > self._depth_max:
            self._depth_max = depth
        if self._receivers and (self._ready() or (self._timed and was_due is None)):
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
        if self._receivers:
            self._wake_receiver()
        return out

    def _put_when_room(self, ticket: Ticket, item: In, timeout: float | None = None) -> None:
        """Put `item` once it fits. Called without the lock."""
        if holds(self._lock):
            self._postponed.add(partial(self.put, item))
            return
        waiting = suspected = False
        limit = None if timeout is None else WaitLimit(self._clock, timeout)
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
                    if self._timed:
                        self._admission.advance(self._clock())
                    if self._fits(ticket):
                        self._accept(ticket, item)
                        return
                    if limit is not None and limit.expired():
                        raise ChannelTimeout(f"no capacity within {timeout:g} s: the channel holds {self.depth} items")
                    if not waiting:
                        waiting = True
                        self._send_waits = begin_wait(self._send_waits, self._clock())
                        if self._keyed:
                            self._refused[call] = ticket
                            self._patient += limit is None
                    if self._keyed:
                        suspected = self._check_progress()
                    parked = park(self._senders)
                    if self._plain is not None and len(self._plain) < self._capacity:
                        wake_all(self._senders)  # a `get` has interrupted this call since the look above
                quiet = QUIET if suspected else -1
                while not parked.acquire(True, quiet if limit is None else limit.seconds(quiet)):
                    if suspected:
                        self._detector.check()
                    if limit is not None and limit.has_come():
                        self._unpark(self._senders, parked)
                        break
        finally:
            if waiting:
                with self._lock:
                    self._send_waits = end_wait(self._send_waits, self._clock())
                    if self._keyed:
                        del self._refused[call]
                        self._patient -= limit is None

    def _get_when_ready(self, worker: int, timeout: float | None = None) -> Out:
        """Return the next item or group once it is ready. Called without the lock."""
        if holds(self._lock):
            raise PipelineError(
                "get() was called by a finaliser or a signal handler that has interrupted another call of this channel "
                "in the same thread, and would wait for it: call get() elsewhere"
            )
        waiting = False
        limit = None if timeout is None and not self._timed else WaitLimit(self._clock, timeout)
        try:
            while True:
                with self._lock:
                    if self._timed:
                        self._admission.advance(self._clock())
                    if self._slow_get or not self._producers:
                        self._check_receiver()
                    if self._ready() and not self._held:
                        try:
                            return self._hand_out(worker)
                        except IndexError:
                            if self._plain is None or self._plain:
                                raise
                            continue  # a `get` has interrupted this call since the look above
                    if limit is not None and limit.expired():
                        raise ChannelTimeout(f"no item within {timeout:g} s: the channel has nothing to hand out")
                    if not waiting:
                        waiting = True
                        self._receive_waits = begin_wait(self._receive_waits, self._clock())
                    parked = park(self._receivers)
                    if self._plain and not self._held:
                        wake_all(self._receivers)  # a `put` has interrupted this call since the look above
                    if limit is not None:
                        limit.due = None if self._held else self._admission.due()
                while not parked.acquire(timeout=self._slice if limit is None else limit.seconds(self._slice)):
                    if limit is not None and limit.has_come():
                        self._unpark(self._receivers, parked)
                        break
        finally:
            if waiting:
                with self._lock:
                    self._receive_waits = end_wait(self._receive_waits, self._clock())
                    if self._timed:
                        self._wake_receiver()  # this one may have waited for the next group

    def _check_receiver(self) -> None:
        """Raise Cancelled or Closed if the calling receiver gets nothing more."""
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

    def _unpark(self, queue: deque[LockType], parked: LockType) -> None:
        """Remove a thread that waits no longer; if it has been woken, it is gone, and the caller checks again."""
        with self._lock:
            if parked in queue:
                queue.remove(parked)

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
        # A sender with a time limit returns, and its producer may then put the missing item.
        if self._deadlocked or self._patient >= self._producers:
            raise AdmissionError(
                f"deadlock: the channel is full (capacity {self._capacity}), and the item that it has to hand out next "
                f"cannot be sent: {missing}. Items may be out of order by at most the capacity: raise it, or send them "
                f"in order"
            )
        return True
