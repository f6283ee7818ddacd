"""Borders between the documents of a micro-batch, which only some sources know."""

from typing import Protocol, runtime_checkable

import numpy as np

from threadloom.stages.data.batches import BatchSource, TokenIds


@runtime_checkable
class BorderedSource(Protocol):
    """A source of micro-batches whose documents are known."""

    def fill_starts(self, batch: int, micro: int, starts: TokenIds) -> None:
        """Write the row within its sequence at which the document of each row begins to `starts` (R,).

        It may be called from any thread in any order.
        """


def fill_starts(source: BatchSource, batch: int, micro: int, starts: TokenIds) -> None:
    """Write the borders of a micro-batch, unless `starts` has no elements; raises TypeError if it has none to write."""
    if not starts.size:
        return
    if not isinstance(source, BorderedSource):
        settings, got = "data.borders=reset or schedule.context_warmup", type(source).__name__
        raise TypeError(f"{settings} needs a source with `fill_starts`, got {got}")
    source.fill_starts(batch, micro, starts)


def divide_sequences(starts: TokenIds, context: int, length: int) -> None:
    """Divide each sequence of `context` rows into ones of `length` rows, beside the borders that it has already.

    `length` divides `context`; `starts` (R,) is changed in place.
    """
    sequences = starts.reshape(-1, context)
    np.maximum(sequences, np.arange(context, dtype=np.int32) // length * length, out=sequences)
