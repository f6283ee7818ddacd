"""Borders between the documents of a micro-batch, which only some sources know."""

from typing import Protocol, runtime_checkable

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
        raise TypeError(f"data.borders=reset needs a source with `fill_starts`, got {type(source).__name__}")
    source.fill_starts(batch, micro, starts)
