"""The iterator over one sink of a run.

Ownership: a `SinkIterator` belongs to the thread that iterates it; any thread may read its counters.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from threadloom.pipeline.core import Cancelled, ChannelTimeout, Closed, PipelineError, StageFailure
from threadloom.pipeline.observe import Counters, Phase, Stage
from threadloom.pipeline.run.channel import Channel

Item = TypeVar("Item")
Default = TypeVar("Default")

_WAITING, _BUSY = Phase.WAITING, Phase.BUSY  # read for each item, as in `worker`


class SinkOwner(Protocol):
    """The part of a run that its sinks use; `Run` documents each method."""

    clock: Callable[[], int]

    def check_running(self) -> None: ...
    def fail(self, failure: StageFailure) -> None: ...
    def shut_down(self) -> None: ...
    def raise_outcome(self) -> NoReturn: ...
    def exhausted(self, name: str) -> None: ...


class _FinishedRun:
    """Stand-in for a run after its `with` block: it keeps the outcome, and no reference to the run."""

    def __init__(self, clock: Callable[[], int], outcome: StageFailure | Cancelled | None) -> None:
        self.clock = clock
        self._outcome = outcome

    def check_running(self) -> None:
        """Do nothing: the run was started."""

    def fail(self, failure: StageFailure) -> None:
        """Do nothing: the outcome is decided."""

    def shut_down(self) -> None:
        """Do nothing: all threads have been joined."""

    def raise_outcome(self) -> NoReturn:
        """Raise the outcome again."""
        assert self._outcome is not None
        raise self._outcome

    def exhausted(self, name: str) -> None:
        """Raise the outcome again, unless the run ended with its input."""
        if self._outcome is not None:
            raise self._outcome


class SinkIterator(Generic[Item]):
    """An iterator over the items that arrive at one sink."""

    def __init__(self, run: SinkOwner, stage: Stage, channel: Channel[Any, Item]) -> None:
        self._run: SinkOwner = run
        self._channel = channel
        self._exclusive: bool = getattr(stage.admission, "exclusive", False)
        self.stage = stage
        self.counters = Counters()
        """Counters of the caller as the worker of this sink: it is busy between two items."""
        self._mark: int | None = None  # start of the current phase, in ns; None before the first item
        self._holds = False  # True while the caller processes an item

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return self.get()
        except Closed:
            raise StopIteration from None

    def get(self, timeout: float | None = None) -> Item:
        """Return the next item, waiting for it if necessary; raise Closed after the last one.

        Raises ChannelTimeout if there is none within `timeout` seconds; 0 does not wait, None waits without a limit.
        The run continues, and can be iterated further. Otherwise like `next`.
        """
        self._run.check_running()
        try:
            self._finish_item()
            item = self._channel.get(0, timeout)
        except Closed:
            self._finish()
            raise Closed(f"sink {self.stage.name!r} has delivered all of its items") from None
        except Cancelled:
            self._run.raise_outcome()
        except ChannelTimeout:
            raise
        except PipelineError as error:
            self._run.fail(StageFailure(self.stage.name, 0, {}, "the end of the input", error))
            self._run.raise_outcome()
        except BaseException:  # Ctrl-C: an interrupted call cannot be resumed
            self._run.shut_down()
            raise
        self._mark = self._switch(_BUSY)
        self._holds = True
        self.counters.items_in += 1
        return item

    def try_get(self, default: Default) -> Item | Default:
        """Return the next item if there is one now, else `default`; raise Closed after the last one."""
        try:
            return self.get(0)
        except ChannelTimeout:
            return default

    def _finish_item(self) -> None:
        """Count the previous item as processed."""
        if self._holds:
            self._holds = False
            self._mark = self._switch(_WAITING)
            self.counters.items_out += 1
            if self._exclusive:
                self._channel.done()

    def _switch(self, phase: Phase) -> int:
        """Enter `phase`, attribute the time since the last switch to the previous one, and return the time."""
        counters, now = self.counters, self._run.clock()
        # Read after the clock, see `Run._join`: the run may have ended while the caller was elsewhere.
        if counters.ended is not None:
            now = min(now, counters.ended)
        since = self._mark if self._mark is not None else counters.began
        assert since is not None
        if phase is _BUSY:
            counters.waiting += now - since
            counters.waits.add(now - since)
        else:
            counters.busy += now - since
            counters.tasks.add(now - since)
        counters.phase = phase
        return now

    def _finish(self) -> None:
        self.end(self._run.clock())
        self._run.exhausted(self.stage.name)

    def drop_references(self, outcome: StageFailure | Cancelled | None) -> None:
        """Break the reference cycle to the run, after its threads have been joined."""
        self._run = _FinishedRun(self._run.clock, outcome)

    def end(self, now: int) -> None:
        """Stop counting time at `now`, unless that has been done."""
        if self.counters.ended is None:
            self.counters.ended = now
