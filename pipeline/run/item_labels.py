"""Labels and descriptions of items, for traces and error messages."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from threadloom.pipeline.core import Label

UNLABELLED: Final[Mapping[str, int | str]] = {}
"""The label of an item in a run without a label function."""
NOTHING: Final = object()
"""No item, or no further element."""


class ItemLabels:
    """The labels of the items of one stage, from the label function of the run."""

    def __init__(self, label: Callable[[Any], Label] | None, *, gathers: bool) -> None:
        self._label = label
        self._gathers = gathers  # True if an item is a group or a tuple of labelled items

    def of(self, item: Any) -> Label:
        """Return the label of an item; for a group, the entries that all its items share."""
        label = self._label
        if label is None:
            return UNLABELLED
        if not self._gathers:
            return label(item)
        common, *others = (label(each) for each in item)
        return {key: value for key, value in common.items() if all(other.get(key) == value for other in others)}

    def describe(self, item: Any) -> tuple[Label, str]:
        """Return the label of an item, and the item formatted for an error message. Never raises."""
        try:
            label = dict(self.of(item))
            return label, " ".join(f"{key}={value}" for key, value in label.items()) or reprlib.repr(item)
        except BaseException as second:  # the error to be reported is another; this one only costs its label
            return UNLABELLED, f"an item of type {type(item).__name__} (its label raised {type(second).__name__})"
