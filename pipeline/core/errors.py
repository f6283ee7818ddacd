"""Errors of the engine. Each message states the problem, the expected and the actual values, and a remedy."""

from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any, Self, TypeVar

Error = TypeVar("Error", bound=BaseException)

Label = Mapping[str, int | str]
"""Fields that identify an item in errors and traces, such as {"batch": 7, "micro": 2}."""


class PipelineError(Exception):
    """Base class of all errors raised by the engine. All of them can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, dict(self.__dict__), portable(self.__cause__))

    def without_traceback(self) -> Self:
        """Return a copy with the same cause, which refers to no frame that has handled this error."""
        return _restored(type(self), self.args, self.__dict__, self.__cause__)


def _restored(kind: type[Error], args: tuple[Any, ...], state: Mapping[str, Any], cause: BaseException | None) -> Error:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class StandInError(PipelineError):
    """The replacement of an exception that cannot be sent to another process."""

    def __init__(self, text: str, types: tuple[str, ...]) -> None:
        super().__init__(text)
        self.types = types
        """The qualified names of the type of the exception and its base types."""

    def stands_for(self, kind: type[BaseException]) -> bool:
        """Return True if the replaced exception was of this type."""
        return type_names(kind)[0] in self.types


def type_names(kind: type[BaseException]) -> tuple[str, ...]:
    """Return the qualified names of an exception type and its base types, the same in every process of a program."""
    # A spawned process imports the main script under another name.
    return tuple(f"{each.__module__}.{each.__qualname__}".replace("__mp_main__", "__main__", 1) for each in kind.mro())


def type_name(error: BaseException) -> str:
    """Return the name of the type of an exception, or of the exception that it replaces."""
    name = error.types[0] if isinstance(error, StandInError) else type(error).__qualname__
    return name.rpartition(".")[2]


def portable(error: BaseException | None) -> BaseException | None:
    """Return an exception that can be sent to another process: `error` itself if possible, else a `StandInError`."""
    if error is None:
        return None
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))  # some exceptions can be pickled, but not restored
    except Exception:
        return StandInError(format_error(error), type_names(type(error)))
    return error


class GraphError(PipelineError, ValueError):
    """An invalid graph. Raised before any thread starts."""


class AdmissionError(PipelineError):
    """Items that violate the admission policy of a stage: a gap, a duplicate, or an incomplete group."""


class RouteError(PipelineError):
    """An item whose key is not among the branches of its route."""


class TooManySkipped(PipelineError):
    """A stage skipped a larger share of its items than its failure policy allows."""


class Stalled(PipelineError):
    """A run did not progress for the period that its watchdog allows."""


class ItemTimeout(PipelineError):
    """An item took longer than the time limit of its stage."""


class Cancelled(PipelineError):
    """The run was stopped while this call waited.

    After `abort()`, channels and resources raise it in all waiting threads and in later calls. A worker of a stopped
    run that gets it ends, and it is not reported as an error of the stage. In any other run it is an error like others:
    a stage function used another run, which was cancelled. The caller's iteration raises it if the run was cancelled
    rather than failed.
    """


class ChannelTimeout(PipelineError, TimeoutError):
    """A `put` or `get` with a time limit, which has passed. Nothing has been put or taken."""


class Closed(PipelineError):
    """End of input: all producers of a channel have finished, and it is empty."""


def format_error(error: BaseException) -> str:
    """Return type and text of an exception. Never raises, also if the text of the exception does."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException as second:  # the error to be reported is the other one
        return f"{name} (its text raised {type(second).__name__})"


class StageFailure(PipelineError):
    """The first error of a run; `__cause__` is the original exception with its traceback."""

    def __init__(self, stage: str, worker: int, label: Label, item: str, cause: BaseException) -> None:
        self.stage = stage
        """Name of the stage whose worker raised."""
        self.worker = worker
        """Index of that worker in its stage, from 0."""
        self.label = dict(label)
        """Label of the current item; empty if the run has no label function or the worker had no item."""
        self.item = item
        """The current item as text: its label, or without a label function its shortened repr."""
        super().__init__(f"stage {stage!r} (worker {worker}) failed on {item}: {format_error(cause)}")
        self.__cause__ = cause


class ShutdownTimeout(PipelineError):
    """Threads still running at the end of the grace period of a stopped run; the message contains their stacks."""

    def __init__(self, stacks: Mapping[str, str], grace: float) -> None:
        self.stacks = dict(stacks)
        """Thread name → its stack when the grace period expired."""
        listing = "\n".join(f"thread {name!r} is at:\n{stack}" for name, stack in stacks.items())
        super().__init__(
            f"{len(stacks)} thread(s) did not end within {grace:g} s of the stop request: a stage function neither "
            f"returns nor waits on a channel or resource of this run. Add timeouts to its blocking calls, or pass the "
            f"resource in start(resources=...).\n{listing}"
        )
