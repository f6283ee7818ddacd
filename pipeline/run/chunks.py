"""Taking items in chunks, for a worker that sends them to its process together.

The worker processes the items of a chunk one by one, as it does those that it takes from the channel singly.

Ownership: everything here belongs to the worker that calls it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from threadloom.pipeline.run.channel import Channel


class SendsAhead(Protocol):
    """A context manager of a stage that sends items ahead of the calls with them."""

    chunk: int
    """Largest number of items to send."""

    def send_ahead(self, items: Sequence[Any]) -> None: ...


def getter(channel: Channel[Any, Any], manager: Any, *, numbered: bool) -> Callable[[int], Any]:
    """Return the function with which a worker takes its items; `manager` is the context manager of its set-up."""
    return channel.get if getattr(manager, "chunk", 1) == 1 else ChunkedGet(channel, manager, numbered=numbered)


class ChunkedGet:
    """A replacement of `Channel.get` that takes the items which are ready, and sends them ahead."""

    def __init__(self, channel: Channel[Any, Any], sender: SendsAhead, *, numbered: bool) -> None:
        self._channel = channel
        self._sender = sender
        self._numbered = numbered  # True if the channel hands out pairs of a number and an item
        self._taken: deque[Any] = deque()

    def __call__(self, worker: int) -> Any:
        """Return the next item. Waits for the first of a chunk only."""
        taken = self._taken
        if not taken:
            taken.append(self._channel.get(worker))
            taken.extend(self._channel.take_ready(self._sender.chunk - 1, worker))
            if len(taken) > 1:
                self._sender.send_ahead([each[1] for each in taken] if self._numbered else list(taken))
        return taken.popleft()
