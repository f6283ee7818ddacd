"""The protocol of the micro-batches that an evaluation reads."""

from typing import Protocol

from threadloom.stages.data import BatchSource


class Windows(BatchSource, Protocol):
    """A fixed number of micro-batches to evaluate on."""

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches."""

    @property
    def tokens(self) -> int:
        """Number of target tokens in all of them that count."""
