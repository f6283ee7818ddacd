"""The number of items of a source, if its iterables know it."""

from collections.abc import Callable
from typing import Any


def length_of(*shards: Any) -> Callable[[], int | None] | None:
    """Return a function that returns the sum of the present lengths, or None if `len` raises; None without lengths.

    A function or class that creates an iterable has no length.
    """
    if any(isinstance(items, type) or not hasattr(items, "__len__") for items in shards):
        return None

    def length() -> int | None:
        try:
            return sum(map(len, shards))
        except Exception:  # a data set may define `__len__` and raise
            return None

    return length
