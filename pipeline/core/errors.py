"""Errors of the engine. Each message states the problem, the expected and the actual values, and a remedy."""

from collections.abc import Mapping

Label = Mapping[str, int | str]
"""Fields that identify an item in errors and traces, such as {"batch": 7, "micro": 2}."""


class PipelineError(Exception):
    """Base class of all errors raised by the engine."""


class GraphError(PipelineError, ValueError):
    """An invalid graph. Raised before any thread starts."""


class AdmissionError(PipelineError):
    """Items that violate the admission policy of a stage: a gap, a duplicate, or an incomplete group."""


class RouteError(PipelineError):
    """An item whose key is not among the branches of its route."""


class TooManySkipped(PipelineError):
    """A stage skipped a larger share of its items than its failure policy allows."""


class Stalled(PipelineError):
    """A run made no progress for the period that its watchdog allows."""


class ItemTimeout(PipelineError):
    """An item took longer than the time limit of its stage."""


class Cancelled(PipelineError):
    """The run was stopped while this call waited.

    After `abort()`, channels and resources raise it in all waiting threads and in later calls. A worker that gets it
    ends, and it is not reported as an error of the stage. The caller's iteration raises it if the run was cancelled
    rather than failed.
    """


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
