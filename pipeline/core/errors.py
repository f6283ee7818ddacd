"""What can go wrong in the engine. Each message says what was needed, what was there, and the remedy."""

from collections.abc import Mapping

Label = Mapping[str, int | str]
"""What tells one item from another, such as {"batch": 7, "micro": 2}."""


class PipelineError(Exception):
    """The base of every error that the engine raises on its own account."""


class GraphError(PipelineError, ValueError):
    """A graph that cannot run: raised before any thread starts, with the name of the stage and the remedy."""


class AdmissionError(PipelineError):
    """Items that break the promise a stage was declared with: a gap, a duplicate, or an incomplete group."""


class RouteError(PipelineError):
    """An item whose key leads to none of the branches of its route."""


class TooManySkipped(PipelineError):
    """A stage that skipped a larger share of its items than its policy allows."""


class Stalled(PipelineError):
    """A run in which nothing has moved for as long as its watchdog waits."""


class ItemTimeout(PipelineError):
    """An item that took longer than the limit of its stage."""


class Cancelled(PipelineError):
    """The run was stopped while this call waited.

    Channels and resources raise it in every thread that waits on them, or comes to them, after `abort()`. In a worker
    it is how the worker learns that it should end, and it is never reported as an error of its stage. The caller's
    iteration raises it when the run was cancelled rather than failed.
    """


class Closed(PipelineError):
    """Every producer of a channel is done and everything in it has been taken: the end of the input."""


class StageFailure(PipelineError):
    """The first error of a run; `__cause__` is the original exception with its own traceback."""

    def __init__(self, stage: str, worker: int, label: Label, item: str, cause: BaseException) -> None:
        self.stage = stage
        """The stage whose worker raised."""
        self.worker = worker
        """Which of that stage's workers it was, counted from 0."""
        self.label = dict(label)
        """The label of the item in hand; empty when the run has no label function or no item was in hand."""
        self.item = item
        """The item in hand in words, shortened; it stands in for the label in a run without one."""
        super().__init__(f"stage {stage!r} (worker {worker}) failed on {item}: {type(cause).__name__}: {cause}")
        self.__cause__ = cause


class ShutdownTimeout(PipelineError):
    """Threads that were told to end and did not within the grace period; the message has the stack of each."""

    def __init__(self, stacks: Mapping[str, str], grace: float) -> None:
        self.stacks = dict(stacks)
        """Thread name → where it stood when the grace period ran out."""
        listing = "\n".join(f"thread {name!r} is at:\n{stack}" for name, stack in stacks.items())
        super().__init__(
            f"{len(stacks)} thread(s) did not end within {grace:g} s of being told to: a stage function neither "
            f"returns nor waits on a channel or resource of this run. Bound its waits, or hand what it waits on to "
            f"start(resources=...).\n{listing}"
        )
