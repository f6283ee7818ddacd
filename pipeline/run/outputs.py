"""The output channels of one worker: registered with as a producer, and closed once.

Ownership: the object belongs to the thread of its worker, apart from `register` and `unregister`, which the run calls
before that thread exists.
"""

from collections.abc import Sequence
from dataclasses import replace

from threadloom.pipeline.observe import Port
from threadloom.pipeline.run.routing import Edge, Send, sender


class Outputs:
    """The edges from the stage of one worker to its successors."""

    def __init__(self, edges: Sequence[Edge]) -> None:
        self._edges = edges
        self._closed = False
        self.send = sender([edge for edge in edges if edge.via is not Port.LETTERS])
        """Sends a result to the successors."""

    def letters(self) -> Send:
        """Return the function that sends a dead letter to the successors that take them."""
        return sender([replace(edge, via=Port.RESULTS) for edge in self._edges if edge.via is Port.LETTERS])

    def register(self) -> bool:
        """Register an additional producer on every channel; return False, and register none, if one is closed."""
        for place, edge in enumerate(self._edges):
            if not edge.channel.add_producer():
                for registered in self._edges[:place]:
                    registered.channel.close()
                return False
        return True

    def unregister(self) -> None:
        """Undo `register`."""
        for edge in self._edges:
            edge.channel.close()

    def close(self) -> None:
        """Close every channel for this producer. A second call does nothing."""
        if not self._closed:
            self._closed = True
            for edge in self._edges:
                edge.channel.close()
