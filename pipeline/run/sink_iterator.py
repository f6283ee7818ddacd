"""What comes out of one sink, for the thread that iterates it.

Ownership: a delivery belongs to the one thread that iterates it; its counters are read by anyone.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from threadloom.pipeline.core import Cancelled, Closed, PipelineError, StageFailure
from threadloom.pipeline.observe import Counters, Phase, Stage
from threadloom.pipeline.run.channel import Channel

Item = TypeVar("Item")

_WAITING, _BUSY = Phase.WAITING, Phase.BUSY  # read for each item, as in `worker`


class SinkOwner(Protocol):
    """A run, as far as what comes out of it needs to know it."""

    clock: Callable[[], int]

    def check_running(self) -> None: ...
    def fail(self, failure: StageFailure) -> None: ...
    def shut_down(self) -> None: ...
    def raise_outcome(self) -> NoReturn: ...
    def exhausted(self, name: str) -> None: ...


class _FinishedRun:
    """A run whose block was left, as far as a sink still needs to know it: it has an outcome, and holds nothing."""

    def __init__(self, clock: Callable[[], int], outcome: StageFailure | Cancelled | None) -> None:
        self.clock = clock
        self._outcome = outcome

    def check_running(self) -> None:
        """It has begun."""

    def fail(self, failure: StageFailure) -> None:
        """It cannot fail any more."""

    def shut_down(self) -> None:
        """That is done."""

    def raise_outcome(self) -> NoReturn:
        """Raise what ended the run, once more."""
        assert self._outcome is not None
        raise self._outcome

    def exhausted(self, name: str) -> None:
        """Raise what ended the run, if it was not the end of the input."""
        if self._outcome is not None:
            raise self._outcome


class SinkIterator(Generic[Item]):
    """What comes out of one sink, for the caller's thread to iterate."""

    def __init__(self, run: SinkOwner, stage: Stage, channel: Channel[Any, Item]) -> None:
        self._run: SinkOwner = run
        self._channel = channel
        self._exclusive: bool = getattr(stage.admission, "exclusive", False)
        self.stage = stage
        self.counters = Counters()  # busy is the time the caller spends between two items
        self._mark: int | None = None
        self._holds = False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        self._run.check_running()
        try:
            self._give_back()
            item = self._channel.get()
        except Closed:
            self._finish()
            raise StopIteration from None
        except Cancelled:
            self._run.raise_outcome()
        except PipelineError as error:
            self._run.fail(StageFailure(self.stage.name, 0, {}, "the end of the input", error))
            self._run.raise_outcome()
        except BaseException:  # Ctrl-C: what was interrupted halfway cannot go on
            self._run.shut_down()
            raise
        self._mark = self._switch(_BUSY)
        self._holds = True
        self.counters.items_in += 1
        return item

    def _give_back(self) -> None:
        """Count the item before as dealt with."""
        if self._holds:
            self._holds = False
            self._mark = self._switch(_WAITING)
            self.counters.items_out += 1
            if self._exclusive:
                self._channel.done()

    def _switch(self, phase: Phase) -> int:
        counters, now = self.counters, self._run.clock()
        if counters.ended is not None:  # looked at after the clock, see `Run._join`: the run ended without this caller
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
        """Refer to the run no more, now that it is over."""
        self._run = _FinishedRun(self._run.clock, outcome)

    def end(self, now: int) -> None:
        """Stop counting, unless that has been done."""
        if self.counters.ended is None:
            self.counters.ended = now
