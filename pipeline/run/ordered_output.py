"""The output of one worker of an ordered stage: the results of an item are collected, and sent at the turn of the item.

Guarantees: results are sent in the order in which the items of the stage were taken, by one worker at a time. Nothing
is sent after the results of an item that has failed, or of which a result could not be sent.

Ownership: an `OrderedOutput` belongs to one worker; the `ReorderBuffer` is shared by the workers of the stage.
"""

from typing import Any, Protocol

from threadloom.pipeline.core import StageFailure
from threadloom.pipeline.policy import FinishedItem, ReorderBuffer
from threadloom.pipeline.run.channel import Channel
from threadloom.pipeline.run.routing import Send


class Holder(Protocol):
    """The worker, whose current item is that of the results being sent."""

    item: Any


class OrderedOutput:
    """The collected results of the current item of a worker, and the stage's order of sending."""

    def __init__(self, reorder: ReorderBuffer, channel: Channel[Any, Any], send: Send) -> None:
        self.number: int | None = None
        """Number of the current item, until its results are in the reorder buffer."""
        self.results: list[Any] = []
        """The results of the current item so far."""
        self._reorder = reorder
        self._channel = channel  # the input channel of the stage
        self._send = send

    def finish(self, worker: Holder, failure: StageFailure | None = None) -> StageFailure | None:
        """Store the results of the current item; send them, and the stored ones that follow, if it is their turn.

        Returns the failure with which the results of this stage end here, or None.
        """
        assert self.number is not None
        finished = self._reorder.finish(self.number, FinishedItem(worker.item, self.results.copy(), failure))
        self.number = None
        self.results.clear()
        try:
            while finished is not None:
                worker.item = finished.item
                for result in finished.results:
                    self._send(result)
                if finished.failure is not None:
                    self._reorder.close()
                    return finished.failure
                self._channel.sent()
                finished = self._reorder.next()
        except BaseException:
            self._reorder.close()
            raise
        return None

    def fail(self, worker: Holder, failure: StageFailure) -> StageFailure | None:
        """Record that the current item has failed, and take no further items; otherwise like `finish`."""
        self._channel.discard()  # all items before the current one have been taken
        return self.finish(worker, failure)
