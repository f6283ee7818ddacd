"""The errors of process stages."""

from threadloom.pipeline.core import PipelineError, StandInError


class WorkerDied(PipelineError):
    """A worker process ended during its work: it was killed, crashed, or called os._exit."""

    def __init__(self, message: str, pid: int, exitcode: int | None) -> None:
        super().__init__(message)
        self.pid = pid
        """Process id."""
        self.exitcode = exitcode
        """Exit code, or the negative number of the signal that ended the process; None if another thread reaped it."""


class WorkerTimeout(PipelineError, TimeoutError):
    """A worker process exceeded the stage's time limit for one item, and was killed."""


class ProcessTraceback(Exception):
    """The traceback of an exception in a worker process: the `__cause__` of that exception in the parent."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


class ProcessError(StandInError):
    """The replacement of an exception that cannot be pickled; its `__cause__` has the traceback.

    A failure policy treats it as it would treat the exception; `types` has the names of the types.
    """
