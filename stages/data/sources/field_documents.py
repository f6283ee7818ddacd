"""Documents that are one field of their records, `data.field`."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from threadloom.stages.data.documents import Document, Origin
from threadloom.stages.data.sources.records import MakeDocument, RecordError

_MOST_NAMED = 8
"""Maximum number of fields that a message names."""


@dataclass(frozen=True)
class FieldDocuments:
    """The text of one field; dots separate the names of nested fields, unless the record has a field of that name."""

    field: str

    @property
    def needs(self) -> str:
        """The field."""
        return self.field

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """Return the column of the field, or that in which it is nested."""
        return next(([name] for name in (self.field, self.field.split(".")[0]) if name in names), [])

    def opened(self) -> AbstractContextManager[MakeDocument]:
        """Return a context with `document`."""
        return nullcontext(self.document)

    def document(self, fields: Mapping[str, Any], origin: Origin) -> Document:
        """Return the text of the field; raises RecordError if it is missing or not a text."""
        path = [self.field] if self.field in fields else self.field.split(".")
        value: Any = fields
        for name in path:
            if not isinstance(value, Mapping) or name not in value:
                raise RecordError(
                    origin,
                    expected=f"a field {self.field!r} with the text",
                    got=_fields_of(value),
                    hint="set data.field to the name of the field, as in data.field=content",
                )
            value = value[name]
        if not isinstance(value, str):
            kind = "null" if value is None else f"a value of type {type(value).__name__}"
            raise RecordError(origin, expected=f"a text in the field {self.field!r}", got=kind)
        return Document(value, origin)


def _fields_of(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"a value of type {type(value).__name__} on the way to it"
    names = [repr(name) for name in value][:_MOST_NAMED]
    more = "" if len(value) <= _MOST_NAMED else ", ..."
    return f"the fields {', '.join(names)}{more}" if names else "no field"
