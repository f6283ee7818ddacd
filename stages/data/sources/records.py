"""Records, the rows of a file with fields, and the protocols of their formats and of the documents made of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from threadloom.stages.data.documents import Document, Origin
from threadloom.stages.data.text_format import TextError

LONGEST_RECORD = 32 << 20
"""Maximum number of bytes of a line, and of characters of a document: both are in memory as a whole."""


class RecordError(TextError):
    """A record that no document can be made of; `subject` is its file and line, and the part of the record."""

    def __init__(
        self, origin: Origin, expected: str, got: str, hint: str | None = None, cause: str | None = None, part: str = ""
    ) -> None:
        self.origin = origin
        remedy = "repair the record, or leave out such records with data.invalid=skip"
        subject = f"{origin}, {part}" if part else str(origin)
        super().__init__(subject, expected, got, cause, hint=f"{hint}; or {remedy}" if hint else remedy)


class Record(NamedTuple):
    """The fields of a row, or the error of a line that has none."""

    origin: Origin
    fields: Mapping[str, Any] | RecordError


class RecordFormat(Protocol):
    """A format of files with records; `FORMATS` lists them."""

    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of such files, in lower case."""
    compressible: ClassVar[bool]
    """True if the suffix of a compressed file may follow."""

    def recognises(self, head: bytes) -> bool:
        """Return True if `head` can only be the beginning of a file in this format."""

    def records(self, path: Path, maker: "DocumentMaker") -> Iterator[Record]:
        """Yield the records of a file with the fields that `maker` reads, in order and in constant memory.

        Raises TextError for a file that cannot be read as a whole.
        """


MakeDocument = Callable[[Mapping[str, Any], Origin], Document]
"""Fields of a record, and its origin → its document; raises RecordError."""


class DocumentMaker(Protocol):
    """Makes a document of each record; its instances can be compared."""

    def columns(self, names: Sequence[str]) -> Sequence[str]:
        """Return those of a file's columns that `document` reads; none if the one that it needs is missing."""

    @property
    def needs(self) -> str:
        """The field that each record needs, for messages."""

    def opened(self) -> AbstractContextManager[MakeDocument]:
        """Return a context in which documents are made, by one thread; leaving it ends what they need."""
