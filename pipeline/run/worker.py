"""The worker: one thread of a stage or source.

Guarantees: a worker holds at most one item (or group) at a time. It ends when its input ends, when a channel or a
resource raises Cancelled, or when anything that it calls raises; in the last case it reports the error, of any type,
together with its item. It also ends, and reports nothing, if its item has been given up and its place taken by another
worker (`late_calls`). However it ends, its set-up is torn down, and it reports its end exactly once, as its last
action: also if its clock, the text of an error, or the engine itself raises.

`_run_loop` is one long function, because its cost is the cost of a handoff.

Ownership: `item` and `counters` are written by the worker's own thread only; any thread may read them.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Final

from threadloom.pipeline.core import Closed, Label, OneShotEvent, StageFailure
from threadloom.pipeline.observe import SKIP, Counters, Ids, Phase
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.chunks import getter
from threadloom.pipeline.run.error_report import ErrorReporter
from threadloom.pipeline.run.expansion_trace import ExpansionTrace
from threadloom.pipeline.run.guarded_iterator import GuardedIterator
from threadloom.pipeline.run.item_labels import NOTHING, UNLABELLED, ItemLabels
from threadloom.pipeline.run.late_calls import LateItem, TimedCalls
from threadloom.pipeline.run.loop_workers import LoopWorker
from threadloom.pipeline.run.ordered_output import OrderedOutput
from threadloom.pipeline.run.outputs import Outputs
from threadloom.pipeline.run.retry import RetryRunner
from threadloom.pipeline.run.rounds import RoundsEnded
from threadloom.pipeline.run.stage_runtime import NULL_CONTEXT, LifecyclePhase, StageRuntime, WorkerContext
from threadloom.pipeline.run.worker_state import PerWorker, check_entered

_NO_IDS: Final[tuple[int, ...]] = ()
# Read for each item: before Python 3.12, reading a member off its Enum costs 0.1 µs.
_WAITING, _BUSY, _BLOCKED = Phase.WAITING, Phase.BUSY, Phase.BLOCKED


class StageWorker:
    """One worker of a stage; `run` is the target of its thread."""

    def __init__(self, runtime: StageRuntime, index: int, context: WorkerContext, late: LateItem | None = None) -> None:
        self.stage = runtime.stage
        self.index = index
        timed = runtime.stage.limit is not None and runtime.stage.concurrency is None
        self.calls = TimedCalls(context.clock) if timed and runtime.failures else None
        """The calls that can be given up; None if the stage has no time limit or no failure policy, or event loops."""
        self._late = late  # the item of the worker that this one replaces
        self.counters = Counters()
        self.ended = OneShotEvent()
        """Set by the run as the last action of the worker's thread."""
        self.item: Any = NOTHING
        """The current item, for error messages."""
        self._runtime = runtime
        self._input = runtime.channel
        self._outputs = Outputs(runtime.edges)
        self._context = context
        self._labels = ItemLabels(context.label, gathers=runtime.stage.gathers)
        self._errors = ErrorReporter(context)
        self._manager: object = None  # the context manager of a stage with set-up and tear-down
        self._send = self._outputs.send
        self._ordered: OrderedOutput | None = None  # of an ordered stage
        if runtime.reorder is not None and runtime.channel is not None:
            self._ordered = OrderedOutput(runtime.reorder, runtime.channel, self._outputs.send)
            self._send = self._ordered.results.append
        if runtime.rounds is not None:
            self._send = runtime.rounds.sender(index, self._outputs.send)

    def join(self) -> None:
        """Count this worker among those that end before the stage can be flushed."""
        self._runtime.flushing.join()

    def register(self) -> bool:
        """Register as an additional producer on all downstream channels, before `run`; False if one has closed."""
        return self._outputs.register()

    def unregister(self) -> None:
        """Undo `register`, for a worker whose thread cannot be started."""
        self._runtime.flushing.leave()
        self._outputs.unregister()

    def abort(self) -> None:
        """Call `abort` of the object that the set-up created, if it has one, to end its waits. From any thread."""
        abort = getattr(self._manager, "abort", None)
        if abort is not None:
            abort()

    def drop_references(self) -> None:
        """Break the reference cycle to the run, after all threads have been joined."""
        self._context = NULL_CONTEXT
        self._errors.drop_references()
        self._labels = ItemLabels(None, gathers=self.stage.gathers)

    def run(self) -> None:
        """Process items until the input ends or the run is stopped."""
        # The context is in no variable of this frame, to which the traceback of an error refers: see drop_references.
        try:
            try:
                self.counters.began = self._context.clock()
                self._work()
            except BaseException as error:  # SystemExit and MemoryError too: no error of a worker may be lost
                self._report(error)
                self._close_outputs()
            self.item = NOTHING
            if not self.given_up:
                self.counters.ended = self._context.clock()
        except BaseException as error:  # the report above failed, or the clock
            self._context.failed(StageFailure(self.stage.name, self.index, UNLABELLED, "no item", error))
        finally:
            self.item = NOTHING
            self._context.ended(self)

    def _work(self) -> None:
        """Process all items, between set-up and tear-down if the stage has them."""
        if not isinstance(self.stage.fn, PerWorker):
            self._process(self.stage.fn)
            return
        manager, fn = self._set_up(self.stage.fn)
        try:
            self._process(fn)
        except BaseException as error:
            self._tear_down(manager, error)
            raise
        self._tear_down(manager, None)

    def _report(self, error: BaseException) -> None:
        self._errors.report(error, self._failure, self._await_turn)

    def _await_turn(self, failure: StageFailure) -> StageFailure | None:
        """Return the failure of a stage once everything before its item has been sent; None if another worker will."""
        if self._ordered is not None and self._ordered.number is not None:
            return self._ordered.fail(self, failure)
        if self._runtime.rounds is not None:
            self._runtime.rounds.end(self.index)
        return failure

    def _set_up(self, fn: PerWorker[Any, Any]) -> tuple[AbstractContextManager[Any], Callable[..., Any]]:
        self.item = LifecyclePhase.SET_UP
        self.counters.phase = Phase.BUSY
        manager = self._manager = fn.make()
        self._context.sleep(0)  # raises Cancelled if the run has been stopped
        entered = manager.__enter__()  # not a `with`, because the manager must not suppress the error of an item
        check_entered(self.stage, entered)
        assert self.counters.began is not None
        self.counters.busy = self._context.clock() - self.counters.began
        self.counters.phase = Phase.WAITING
        self.item = NOTHING
        return manager, entered

    def _tear_down(self, manager: AbstractContextManager[Any], error: BaseException | None) -> None:
        self.item = LifecyclePhase.TEAR_DOWN
        manager.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _process(self, fn: Callable[..., Any] | None) -> None:
        """Process items until the input ends, then close the channels of the successors."""
        assert fn is not None
        try:
            if self._input is None:
                self._produce(fn)
            else:
                call = self._with_failure_policy(fn)
                if self._late is not None and isinstance(call, RetryRunner):
                    self._finish_late(call, self._late, self._input)
                self._run_loop(call, self._input)
                self._flush(fn, self._input)
        except BaseException as error:
            # Reported before the tear-down, which may take time, so that the other workers can end during it.
            self._report(error)
            self._close_outputs()
            raise
        self._close_outputs()

    def _close_outputs(self) -> None:
        if not self.given_up:  # the worker that replaces this one sends to the same channels
            self._outputs.close()

    def _flush(self, fn: Callable[..., Any], channel: Channel[Any, Any]) -> None:
        """Send the results of the state that the function is left with at the end of the input."""
        if channel.discards:
            return  # the stage has failed
        # In an ordered stage too: all items have been sent when it is the turn of these results.
        self._send = self._outputs.send
        self.item = LifecyclePhase.FLUSH
        self.counters.phase = _BUSY
        mark = self._context.clock()
        for results in self._runtime.flushing.results(self.index, fn):
            mark = self._send_expanded(results, mark, UNLABELLED, _NO_IDS)
        self.item = NOTHING

    def _with_failure_policy(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return `fn`, called under the failure policy of the stage."""
        if self._runtime.failures is None:
            return fn
        return RetryRunner(
            fn, self.stage, self._runtime.failures, self._outputs.letters(), self._context.sleep, self.calls
        )

    def _run_loop(self, fn: Callable[..., Any], channel: Channel[Any, Any]) -> None:
        """Process every item of the input channel. One function, because its cost is the cost of a handoff."""
        clock, record, send, index = self._context.clock, self._context.record, self._send, self.index
        counters, stage, ordered = self.counters, self.stage, self._ordered
        waits, tasks = counters.waits.counts, counters.tasks.counts
        get = getter(channel, self._manager, numbered=ordered is not None)
        acquire = self._runtime.acquirer(self._context.sleep)
        exclusive, expand = getattr(stage.admission, "exclusive", False), stage.expand
        assert counters.began is not None
        tag: Label = UNLABELLED
        taken: Ids = _NO_IDS
        # The times so far are those of the set-up and of the item of the worker that this one replaces, if any.
        mark = counters.began + counters.busy + counters.blocked
        while True:
            try:
                item = get(index)
            except Closed:
                return
            if ordered is not None:
                ordered.number, item = item
            self.item = item
            if acquire is not None:
                acquire(item)
            if record is not None:
                tag = self._labels.of(item)  # before the call, which may pass the item on to another thread
                taken = tuple(map(id, item)) if stage.gathers else id(item)
            start = clock()
            counters.waiting += start - mark
            duration = start - mark + 16  # Histogram.add inlined, here and below: calling it costs a third more
            exponent = duration.bit_length()
            waits[(exponent << 4) + (duration >> exponent - 5)] += 1
            counters.phase = _BUSY
            counters.items_in += 1
            result = fn(item)
            if expand:
                mark = self._send_expanded(result, start, tag, taken)
            else:
                end = clock()
                counters.busy += end - start
                duration = end - start + 16
                exponent = duration.bit_length()
                tasks[(exponent << 4) + (duration >> exponent - 5)] += 1
                counters.phase = _BLOCKED
                if record is not None:
                    sent: Ids = _NO_IDS if result is SKIP else id(result)
                    record((stage.name, index, start, end, tag, channel.depth, taken, sent))
                if result is not SKIP:
                    send(result)
                    counters.items_out += 1
                mark = clock()
                counters.blocked += mark - end
            if ordered is not None:
                self._finish_in_order()
                end, mark = mark, clock()
                counters.blocked += mark - end
            counters.phase = _WAITING
            if exclusive:
                channel.done(index)
            self.item = NOTHING  # a waiting worker keeps no item alive
            item = result = None

    def _finish_in_order(self) -> None:
        """Send the results of the items of an ordered stage whose turn it is."""
        failure = self._ordered.finish(self) if self._ordered is not None else None
        if failure is not None:
            self._context.failed(failure)

    def _finish_late(self, call: RetryRunner, late: LateItem, channel: Channel[Any, Any]) -> None:
        """Finish the item of the worker that this one replaces."""
        counters, clock = self.counters, self._context.clock
        assert counters.began is not None
        self.item = late.item
        if self._ordered is not None:
            self._ordered.number = late.number
        counters.phase = _BUSY
        start = counters.began + counters.busy
        result = call.resume(late)
        end = clock()
        counters.busy += end - start
        counters.phase = _BLOCKED
        for element in result if self.stage.expand else (result,):
            if element is not SKIP:
                self._send(element)
                counters.items_out += 1
        self._finish_in_order()
        if getattr(self.stage.admission, "exclusive", False):
            channel.done(late.worker)
        counters.blocked += clock() - end
        counters.phase = _WAITING
        self.item = NOTHING
        self._late = None

    def _produce(self, fn: Callable[..., Any]) -> None:
        assert self.counters.began is not None
        self.counters.phase = _BUSY
        elements = fn(self.index) if self.stage.shards else fn()
        failures, rounds = self._runtime.failures, self._runtime.rounds
        if failures is not None:
            iterator, letters, sleep = iter(elements), self._outputs.letters(), self._context.sleep
            closes = iterator is elements
            elements = GuardedIterator(iterator, self.stage.name, failures, letters, sleep, closes=closes)
        start = self.counters.began + self.counters.busy  # busy so far is the time of the set-up, as in `_run_loop`
        try:
            self._send_expanded(elements, start, None, _NO_IDS)
            if rounds is not None:
                rounds.leave(self.index)
        except RoundsEnded:
            return

    def _send_expanded(self, elements: Iterable[Any], start: int, tag: Label | None, taken: Ids) -> int:
        """Send the elements one by one and return the time when the last was sent. Time in `next` counts as busy.

        `tag` is the label of the trace events, or None for a source, whose elements are labelled themselves. `taken` is
        the id of the input item.
        """
        clock, record, counters = self._context.clock, self._context.record, self.counters
        gate = self._runtime.gate
        iterator = iter(elements)
        lazy = iterator is elements  # otherwise the call created all elements, and has one trace event
        first = True
        trace: ExpansionTrace | None = None
        if record is not None:
            one_each, name, index = lazy or tag is None, self.stage.name, self.index
            trace = ExpansionTrace(record, name, index, self._input, self._labels, tag, taken, one_each)
        try:
            while True:
                if gate is not None and gate.needs_check:
                    counters.phase = _WAITING
                    if not gate.check():
                        return start
                    counters.waiting -= start - (start := clock())
                    counters.phase = _BUSY
                element = next(iterator, NOTHING)
                end = clock()
                counters.busy += end - start
                if first or element is not NOTHING:  # the end of the iterable does not count as a task
                    counters.tasks.add(end - start)
                counters.phase = _BLOCKED
                if tag is None:
                    self.item = element
                if trace is not None:
                    trace.add(element, start, end)
                if element is NOTHING:
                    return end
                if element is not SKIP:
                    self._send(element)
                    counters.items_out += 1
                first = False
                element = None
                if tag is None:
                    self.item = NOTHING
                start = clock()
                counters.blocked += start - end
                counters.phase = _BUSY
        finally:
            # Runs the `finally` of a generator here, in its own thread, and not when its last traceback is dropped.
            # An iterator that the user passed in stays open: the user may continue to use it.
            if self.stage.closes and lazy and hasattr(iterator, "close"):
                iterator.close()

    def stack(self) -> str:
        """Return the stack of the coroutine that the worker waits for; empty if there is none."""
        return self._manager.stack() if isinstance(self._manager, LoopWorker) else ""

    def describe_item(self) -> tuple[Label, str]:
        """Return the label of the current item, and the item formatted. May be called from another thread."""
        item = self.item
        if isinstance(item, LifecyclePhase):
            return UNLABELLED, item.value
        if item is NOTHING:
            return UNLABELLED, f"item {self.counters.items_out} of the source" if self._input is None else "no item"
        return self._labels.describe(item)

    def in_progress(self, now: int) -> tuple[Phase, float]:
        """Return the current phase and the seconds since it began; since the call began, if calls can be given up."""
        phase, seconds = self.counters.in_progress(now)
        timed = self.calls is not None and phase is _BUSY and not self.calls.expanding
        return phase, self.calls.seconds(now) if self.calls is not None and timed else seconds

    @property
    def given_up(self) -> bool:
        """True if another worker has taken the place of this one, or the run fails because its call is late."""
        return self.calls is not None and self.calls.given_up

    @property
    def number(self) -> int:
        """Number of the current item of an ordered stage."""
        return (self._ordered and self._ordered.number) or 0

    @property
    def has_item(self) -> bool:
        """True while the worker has an item."""
        return self.item is not NOTHING

    def _failure(self, error: BaseException) -> StageFailure:
        label, text = self.describe_item()
        return StageFailure(self.stage.name, self.index, label, text, error)
