"""Stage functions with set-up and tear-down per worker: `per_worker(make)` is passed in place of a function.

    class Detect:
        def __enter__(self) -> Self:            # in the worker's thread, before its first item
            self.model = load_model()
            return self
        def __call__(self, image: Image) -> Boxes: ...
        def __exit__(self, *error: object) -> None:  # in the same thread, however the worker ends
            self.model.close()

    graph.stage("detect", per_worker(Detect), after=images, workers=4)

A generator function that yields the stage function once works as well:

    @contextmanager
    def connected() -> Iterator[Callable[[str], Row]]:
        with connect() as database:
            yield database.look_up

Guarantees: `make` is called once per worker, in its thread. The context manager that it returns is entered before the
worker takes an item and exited exactly once, with the error that ended the worker, if any. An error in either fails the
run, with "set-up" or "tear-down" in place of the item. The context manager cannot suppress the error of an item; a
failure policy can.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Generic, TypeVar

from threadloom.pipeline.core import FunctionKind, PipelineError, is_async_manager, kind_of, kind_of_instances
from threadloom.pipeline.observe import Stage

In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)

Manager = AbstractContextManager[Callable[[In], Out]] | AbstractAsyncContextManager[Callable[[In], Out]]
Make = Callable[[], Manager[In, Out]]
"""Creates the context manager of one worker."""


class PerWorker(Generic[In_contra, Out_co]):
    """A stage function with per-worker state, returned by `per_worker`. It can also be called like a function."""

    def __init__(self, make: "Make[In_contra, Out_co]") -> None:
        # One that returns asynchronous context managers is called by event loops only, which look at their type.
        self.make: Callable[[], AbstractContextManager[Callable[[In_contra], Out_co]]] = make  # type: ignore[assignment]

    @property
    def kind(self) -> FunctionKind:
        """The kind of the functions of the workers; PLAIN if `make` is no class, and it is known in a run only."""
        return kind_of_instances(self.make)

    @property
    def asynchronous(self) -> bool:
        """True if the workers need an event loop, as far as that is known before a run."""
        return self.kind.asynchronous or is_async_manager(self.make)

    def __call__(self, item: In_contra) -> Out_co:
        """Set up, process one item and tear down, for callers other than a worker: a test, or sequential training."""
        context = self.make()
        fn = context.__enter__()
        try:
            result = fn(item)
        except BaseException as error:
            context.__exit__(type(error), error, error.__traceback__)
            raise
        context.__exit__(None, None, None)
        return result

    def __repr__(self) -> str:
        return f"per_worker({self.make!r})"


def check_entered(stage: Stage, fn: object) -> None:
    """Raise PipelineError if the function of a worker is of a kind for which its stage was not declared."""
    kind = kind_of(fn)
    if kind.generates and not stage.expand:
        raise PipelineError(f"the function that per_worker set up is {kind.value}: pass expand=True to the stage")
    if kind.asynchronous and stage.concurrency is None:
        raise PipelineError(f"the function that per_worker set up is {kind.value}: pass concurrency=N to the stage")


def per_worker(make: Make[In, Out]) -> PerWorker[In, Out]:
    """Return a stage function of which every worker has its own instance; see the top of this module.

    An asynchronous context manager, or one for a coroutine function, is used on the event loop of the worker, whose
    `concurrency` items share it.

    If the object returned by `make` has a method `abort`, it is called from another thread when the run is stopped; it
    should end any wait of the worker.
    """
    return PerWorker(make)
