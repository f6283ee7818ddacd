"""An expansion whose first element has been produced under the failure policy of its stage, and the others are not.

Ownership: it belongs to the worker that sends the elements.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from threadloom.pipeline.observe import SKIP

_NOTHING: Final = object()


class StartedExpansion(Iterator[Any]):
    """The elements of an expansion other than SKIP. The first is produced as the object is created."""

    def __init__(self, elements: Iterable[Any]) -> None:
        self._iterator = iter(elements)
        self._closes = self._iterator is elements
        self._sent = 0
        self._first = self._produce()

    def __next__(self) -> Any:
        element, self._first = self._first, _NOTHING
        if not self._sent:
            self._sent = 1
        elif element is _NOTHING:
            try:
                element = self._produce()
            except Exception as error:
                with suppress(Exception):
                    error.add_note(
                        f"{self._sent} element(s) of this item had been sent, so that the failure policy of the stage "
                        f"does not apply: with expansion=Expansion.COLLECTED it does"
                    )
                raise
            self._sent += 1
        if element is _NOTHING:
            raise StopIteration
        return element

    def close(self) -> None:
        """Close the iterator, as the worker does with an expansion that it has to close."""
        if self._closes and hasattr(self._iterator, "close"):
            self._iterator.close()

    def _produce(self) -> Any:
        """Return the next element other than SKIP, or _NOTHING at the end."""
        while (element := next(self._iterator, _NOTHING)) is SKIP:
            pass
        return element
