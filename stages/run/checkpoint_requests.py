"""Checkpoints on request: a thread that writes the newest version of a run while its pipeline works."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from loguru import logger

from threadloom.pipeline import Cancelled
from threadloom.stages.config import InputError
from threadloom.stages.console import Stopped
from threadloom.stages.memory import Saved

EVALUATION_SECONDS = 3.0
"""Seconds that a stopped run waits for an evaluation; a checkpoint is written without a longer one."""


class CheckpointRequests:
    """The requests of one run, and the thread that serves them, which ends with the block.

    `save` writes the newest version and returns None if there is a checkpoint of it; it raises `Cancelled` once the run
    has been aborted. `settle(seconds)` waits for evaluations before the last checkpoint, `end` stops the pipeline.
    """

    def __init__(
        self, save: Callable[[], Saved | None], settle: Callable[[float], object], end: Callable[[], object]
    ) -> None:
        self._save = save
        self._settle = settle
        self._end = end
        self._requests: SimpleQueue[Stopped | bool] = SimpleQueue()  # True: a checkpoint; False: the end of the block
        self._thread = threading.Thread(target=self._serve, name="checkpoint requests")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._requests.put(False)
        self._thread.join()

    def save(self) -> None:
        """Ask for a checkpoint. Safe in a signal handler, as is `stop`."""
        self._requests.put(True)

    def stop(self, stopped: Stopped) -> None:
        """Ask for a checkpoint and then the end of the run."""
        self._requests.put(stopped)

    def _serve(self) -> None:
        while request := self._requests.get():
            try:
                if isinstance(request, Stopped):
                    logger.warning("{}: writing a checkpoint; a second signal ends at once", request.name)
                    self._settle(EVALUATION_SECONDS)
                self._write()
            except Cancelled:
                return
            finally:
                if isinstance(request, Stopped):
                    self._end()

    def _write(self) -> None:
        try:
            saved = self._save()
        except (InputError, OSError) as error:
            logger.error("{}", error)
            return
        if saved:
            logger.info("step {}: checkpoint {} ({:.1f} s)", saved.step, saved.path, saved.seconds)
        else:
            logger.info("no update has been made since the last checkpoint")
