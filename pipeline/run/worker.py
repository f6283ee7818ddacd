"""The worker that runs a stage in one thread.

Guarantees: a worker holds at most one item (or group) at a time; it ends when its input ends, when a channel or a
resource raises Cancelled, or when anything that it calls raises, and in the last case it reports the error, whatever
its type, with the item in hand; however it ends, what it set up is torn down, and it says so exactly once.

Ownership: `item` and `counters` are written by the worker's own thread alone and read by anyone.
"""

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from time import perf_counter_ns
from typing import Any, Final

from threadloom.pipeline.core import Cancelled, Closed, Label, StageFailure
from threadloom.pipeline.observe import SKIP, Counters, Ids, Phase, Port, RawEvent, Stage
from threadloom.pipeline.policy import FinishedItem, ReorderBuffer
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.retry import FailureCounters, RetryRunner
from threadloom.pipeline.run.routing import Edge, sender
from threadloom.pipeline.run.source_gate import SourceGate
from threadloom.pipeline.run.worker_state import PerWorker


@dataclass(frozen=True)
class WorkerContext:
    """What a worker is given of its run."""

    clock: Callable[[], int]
    record: Callable[[RawEvent], None] | None
    label: Callable[[Any], Label] | None
    failed: Callable[[StageFailure], None]
    cancelled: Callable[[], None]
    ended: Callable[["StageWorker"], None]
    pause: Callable[[float], None]
    """Wait so many seconds, but no longer than the run lasts: then Cancelled is raised."""


def _ignore(*_: object) -> None:
    pass


NULL_CONTEXT: Final = WorkerContext(perf_counter_ns, None, None, _ignore, _ignore, _ignore, _ignore)
"""Null context for workers after the run has ended."""


@dataclass(frozen=True)
class StageRuntime:
    """What the workers of one stage share."""

    stage: Stage
    edges: Sequence[Edge]
    channel: Channel[Any, Any] | None
    """In front of the stage; None for a source."""
    gate: SourceGate | None
    """In front of a source; None for others."""
    turns: ReorderBuffer | None
    """Of an ordered stage."""
    failures: FailureCounters | None
    """Of a stage whose policy is not to fail at once."""


class LifecyclePhase(Enum):
    """What a worker has in hand before its first item and after its last."""

    SET_UP = "set-up"
    TEAR_DOWN = "tear-down"


_NOTHING: Final = object()  # no item in hand, or no further element
_UNLABELLED: Final[Mapping[str, int | str]] = {}
_NO_IDS: Final[tuple[int, ...]] = ()
# Read for each item: before Python 3.12 a member read off its Enum costs 0.1 µs.
_WAITING, _BUSY, _BLOCKED = Phase.WAITING, Phase.BUSY, Phase.BLOCKED


class StageWorker:
    """One thread of a stage; `run` is the thread's target."""

    def __init__(self, runtime: StageRuntime, index: int, run: WorkerContext) -> None:
        self.stage = runtime.stage
        self.index = index
        self.counters = Counters()
        self.item: Any = _NOTHING
        """What is in hand, for reports."""
        self._runtime = runtime
        self._input = runtime.channel
        self._edges = runtime.edges
        self._run = run
        self._turns = runtime.turns
        self._send_result = sender([edge for edge in runtime.edges if edge.via is not Port.LETTERS])
        self._context: object = None  # of a stage with set-up and tear-down
        self._results: list[Any] = []  # of the item in hand; only of an ordered stage
        self._send = self._send_result if runtime.turns is None else self._results.append

    def register(self) -> bool:
        """Join a stage at work, before `run`. Return False if it is too late: everything has been sent already."""
        for place, edge in enumerate(self._edges):
            if not edge.channel.open():
                for opened in self._edges[:place]:
                    opened.channel.close()
                return False
        return True

    def abort(self) -> None:
        """End the waits of what the set-up made, if it has an `abort`: a process does. From any thread."""
        abort = getattr(self._context, "abort", None)
        if abort is not None:
            abort()

    def drop_references(self) -> None:
        """Refer to the run no more, now that it is over."""
        self._run = NULL_CONTEXT

    def run(self) -> None:
        """Work until the input ends or the run does."""
        self.counters.began = self._run.clock()
        try:
            self._work()
        except Cancelled:
            self._run.cancelled()
        except BaseException as error:  # SystemExit and MemoryError too: a worker never dies in silence
            self._run.failed(self._describe(error))
        finally:
            self.item = _NOTHING
            self.counters.ended = self._run.clock()
            self._run.ended(self)

    def _work(self) -> None:
        """Do all the work, with set-up before and tear-down after it if the stage has them."""
        if not isinstance(self.stage.fn, PerWorker):
            self._handle(self.stage.fn)
            return
        context, fn = self._set_up(self.stage.fn)
        try:
            self._handle(fn)
        except BaseException as error:
            # Said before the tear-down, which may take its time: the others end meanwhile.
            if not isinstance(error, Cancelled):
                self._run.failed(self._describe(error))
            self._tear_down(context, error)
            raise
        self._tear_down(context, None)

    def _set_up(self, fn: PerWorker[Any, Any]) -> tuple[AbstractContextManager[Any], Callable[..., Any]]:
        self.item = LifecyclePhase.SET_UP
        self.counters.phase = Phase.BUSY
        context = self._context = fn.make()
        self._run.pause(0)  # Cancelled if the run is over already
        entered = context.__enter__()  # not a `with`, because what it holds may not swallow the error of an item
        assert self.counters.began is not None
        self.counters.busy = self._run.clock() - self.counters.began
        self.counters.phase = Phase.WAITING
        self.item = _NOTHING
        return context, entered

    def _tear_down(self, context: AbstractContextManager[Any], error: BaseException | None) -> None:
        self.item = LifecyclePhase.TEAR_DOWN
        context.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _handle(self, fn: Callable[..., Any] | None) -> None:
        """Work until the input ends, then say so to the stages behind."""
        assert fn is not None
        if self._input is None:
            self._produce(fn)
        else:
            self._run_loop(self._with_failure_policy(fn), self._input)
        for edge in self._edges:
            edge.channel.close()

    def _with_failure_policy(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as the policy of the stage has it called."""
        if self._runtime.failures is None:
            return fn
        letters = sender([replace(edge, via=Port.RESULTS) for edge in self._edges if edge.via is Port.LETTERS])
        return RetryRunner(fn, self.stage, self._runtime.failures, letters, self._run.pause)

    def _run_loop(self, fn: Callable[..., Any], channel: Channel[Any, Any]) -> None:
        """The loop that every item goes through; kept in one piece because it is the cost of a hop."""
        clock, record, send, index = self._run.clock, self._run.record, self._send, self.index
        counters, stage = self.counters, self.stage
        waits, tasks = counters.waits.counts, counters.tasks.counts
        get, acquire = channel.get, stage.acquire
        exclusive = getattr(stage.admission, "exclusive", False)
        turns, number, expand = self._turns, 0, stage.expand
        assert counters.began is not None
        tag: Label = _UNLABELLED
        taken: Ids = _NO_IDS
        mark = counters.began + counters.busy  # busy so far with the set-up, if there is one
        while True:
            try:
                item = get(index)
            except Closed:
                return
            if turns is not None:
                number, item = item
            self.item = item
            if acquire is not None:
                acquire(item)
            if record is not None:
                tag = self._label(item)  # before the call: afterwards the item may belong to somebody else
                taken = tuple(map(id, item)) if stage.gathers else id(item)
            start = clock()
            counters.waiting += start - mark
            duration = start - mark + 16  # Histogram.add by hand, here and below: calling it costs a third more
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
            if turns is not None:
                self._send_in_turn(turns, number, channel)
                end, mark = mark, clock()
                counters.blocked += mark - end
            counters.phase = _WAITING
            if exclusive:
                channel.done(index)
            # Nothing is kept alive by a worker that waits.
            self.item = _NOTHING
            item = result = None

    def _send_in_turn(self, turns: ReorderBuffer, number: int, channel: Channel[Any, Any]) -> None:
        """Keep the results of the item in hand, or send them if it is their turn, and those kept that follow."""
        finished = turns.finish(number, FinishedItem(self.item, self._results.copy()))
        self._results.clear()
        while finished is not None:
            self.item = finished.item
            for result in finished.results:
                self._send_result(result)
            channel.sent()
            finished = turns.next()

    def _produce(self, fn: Callable[..., Any]) -> None:
        assert self.counters.began is not None
        self.counters.phase = _BUSY
        self._send_expanded(fn(), self.counters.began, None, _NO_IDS)

    def _send_expanded(self, elements: Iterable[Any], start: int, tag: Label | None, taken: Ids) -> int:
        """Send the elements one by one, time in `next` being busy; return when the last was done.

        `tag` labels the trace; a source has none, and its elements label themselves. `taken` identifies the input.
        """
        clock, record, counters = self._run.clock, self._run.record, self.counters
        gate = self._runtime.gate
        iterator = iter(elements)
        lazy = iterator is elements  # otherwise everything was made in the call, and one event tells it
        fresh = True
        alone = lazy or tag is None  # each element has an event of its own
        told: list[int] = []  # otherwise, what the one event tells
        try:
            while True:
                if gate is not None and gate.needs_check:
                    counters.phase = _WAITING
                    if not gate.check():
                        return start
                    counters.waiting -= start - (start := clock())
                    counters.phase = _BUSY
                element = next(iterator, _NOTHING)
                end = clock()
                counters.busy += end - start
                if fresh or element is not _NOTHING:  # the end of the iterable is not a task of its own
                    counters.tasks.add(end - start)
                counters.phase = _BLOCKED
                if tag is None:
                    self.item = element
                if record is not None:
                    made = element is not _NOTHING and element is not SKIP
                    if fresh or (alone and element is not _NOTHING):
                        sent: Ids = told if not alone else id(element) if made else _NO_IDS
                        label = self._tag(element, tag)
                        record((self.stage.name, self.index, start, end, label, self._depth(), taken, sent))
                        taken = _NO_IDS  # the events that follow it come from the same input
                    if made and not alone:
                        told.append(id(element))
                if element is _NOTHING:
                    return end
                if element is not SKIP:
                    self._send(element)
                    counters.items_out += 1
                fresh = False
                element = None
                if tag is None:
                    self.item = _NOTHING
                start = clock()
                counters.blocked += start - end
                counters.phase = _BUSY
        finally:
            # A generator's own `finally` runs here, in its thread, and not whenever its last traceback is dropped.
            # What the user handed over as an iterator stays open: they may go on with it.
            if self.stage.closes and lazy and hasattr(iterator, "close"):
                iterator.close()

    def _depth(self) -> int:
        return 0 if self._input is None else self._input.depth

    def _tag(self, element: Any, tag: Label | None) -> Label:
        if tag is not None:
            return tag
        return _UNLABELLED if element is _NOTHING or element is SKIP else self._label(element)

    def _label(self, item: Any) -> Label:
        """The run's label of an item; of a group, what all its items agree on."""
        label = self._run.label
        if label is None:
            return _UNLABELLED
        if not self.stage.gathers:
            return label(item)
        common, *others = (label(each) for each in item)
        return {key: value for key, value in common.items() if all(other.get(key) == value for other in others)}

    def in_hand(self) -> tuple[Label, str]:
        """Return the label of what is in hand, and what it is in words. May be called from another thread."""
        item = self.item
        if isinstance(item, LifecyclePhase):
            return _UNLABELLED, item.value
        if item is _NOTHING:
            return _UNLABELLED, f"item {self.counters.items_out} of the source" if self._input is None else "no item"
        try:
            tag = self._label(item)
            return tag, " ".join(f"{key}={value}" for key, value in tag.items()) or reprlib.repr(item)
        except BaseException as second:  # there is something else to report; this only spoils its label
            return _UNLABELLED, f"an item of type {type(item).__name__} (its label raised {type(second).__name__})"

    @property
    def holds(self) -> bool:
        """Whether an item is in hand."""
        return self.item is not _NOTHING

    def _describe(self, error: BaseException) -> StageFailure:
        tag, words = self.in_hand()
        return StageFailure(self.stage.name, self.index, tag, words, error)
