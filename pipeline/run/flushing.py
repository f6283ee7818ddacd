"""The end of the input of a stage whose function has a method `flush`: the results of the state that is left.

- one object for all workers: `flush` is called once, by the last worker, after all items;
- `per_worker` and process stages: each worker flushes its own object. The results are sent as they are produced; those
  of an ordered stage are collected, and sent after the results of all items, in the order of the worker indices.

A worker that ends because the stage has fewer workers flushes its object too. Nothing is flushed after a failure of the
stage, after a stop of the run, and by a worker whose call was given up. Failure policies do not apply to `flush`.

Ownership: `_working` is guarded by the lock, and no foreign code runs while it is held. An entry of `_kept` is set by
its worker and read by the last one.
"""

from _thread import allocate_lock
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from threadloom.pipeline.core import flushed
from threadloom.pipeline.observe import Stage
from threadloom.pipeline.run.worker_state import PerWorker


class Flushing:
    """The flushing of one stage in one run."""

    def __init__(self, stage: Stage) -> None:
        self._own = isinstance(stage.fn, PerWorker)
        self._ordered = stage.ordered
        self._lock = allocate_lock()
        self._working = 0  # workers that have not left
        self._kept: dict[int, list[Any]] = {}  # worker → its results; of an ordered stage only

    def join(self) -> None:
        """Count a worker that will process items."""
        with self._lock:
            self._working += 1

    def leave(self) -> bool:
        """Count a worker that processes no further item; return True if it is the last."""
        with self._lock:
            self._working -= 1
            return not self._working

    def results(self, worker: int, fn: object) -> Iterator[Iterable[Any]]:
        """Yield the results that this worker has to send now, at the end of its input, as one iterable."""
        if not self._own:
            left: Iterable[Any] = flushed(fn) if self.leave() else ()
        elif self._ordered:
            self._kept[worker] = list(flushed(fn))
            left = [each for index in sorted(self._kept) for each in self._kept.pop(index)] if self.leave() else ()
        else:
            left = flushed(fn)
        if not isinstance(left, Sized) or len(left):
            yield left
