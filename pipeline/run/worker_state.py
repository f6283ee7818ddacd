"""A stage function with set-up and tear-down in each worker: `per_worker(make)` is used where a function is.

    class Detect:
        def __enter__(self) -> Self:            # in the worker's thread, before its first item
            self.model = load_model()
            return self
        def __call__(self, image: Image) -> Boxes: ...
        def __exit__(self, *error: object) -> None:  # in the same thread, however the worker ends
            self.model.close()

    graph.stage("detect", per_worker(Detect), after=images, workers=4)

A generator with one `yield` of the function does as well:

    @contextmanager
    def connected() -> Iterator[Callable[[str], Row]]:
        with connect() as database:
            yield database.look_up

Guarantees: `make` is called once for each worker, in its thread; what it returned is entered before the worker takes an
item and left exactly once, with the error that ended the worker, if one did. An error in either is the run's, with
"set-up" or "tear-down" for the item. The context manager cannot swallow the error of an item: a policy does that.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class PerWorker(Generic[In_contra, Out_co]):
    """What `per_worker` returns; a graph knows it, and everything else sees a function."""

    def __init__(self, make: Callable[[], AbstractContextManager[Callable[[In_contra], Out_co]]]) -> None:
        self.make = make

    def __call__(self, item: In_contra) -> Out_co:
        """Set up, call and tear down for one item, as anyone but a worker may do: a test, a sequential replay."""
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


def per_worker(make: Callable[[], AbstractContextManager[Callable[[In], Out]]]) -> PerWorker[In, Out]:
    """Return a stage function of which every worker has its own: see the top of this module.

    If what `make` returns has a method `abort`, it is called, from another thread, when the run is stopped: end there
    what the worker may be waiting for.
    """
    return PerWorker(make)
