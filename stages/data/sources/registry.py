"""The registry of formats with records, and the documents of a file.

To add a text format, write its class and list it here. To make documents of records in another way, write a
`DocumentMaker` and choose it in `reading_of`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from threadloom.stages.config import DataConfig, InvalidRecords
from threadloom.stages.data.compression import COMPRESSIONS
from threadloom.stages.data.conversations.record_documents import ConversationDocuments, RecordDocuments
from threadloom.stages.data.documents import Document, Origin
from threadloom.stages.data.sources.arrow_files import Arrow, Parquet
from threadloom.stages.data.sources.field_documents import FieldDocuments
from threadloom.stages.data.sources.json_lines import JsonLines
from threadloom.stages.data.sources.records import LONGEST_RECORD, DocumentMaker, RecordError, RecordFormat

FORMATS: tuple[RecordFormat, ...] = (JsonLines(), Parquet(), Arrow())
"""The formats, in the order in which they are tried."""

_COMPRESSED = frozenset(compression.suffix for compression in COMPRESSIONS)
_HEAD_BYTES = 8
_TEXT = FieldDocuments("text")


@dataclass(frozen=True)
class Reading:
    """How records become documents."""

    maker: DocumentMaker = _TEXT
    invalid: InvalidRecords = InvalidRecords.REFUSE
    whole_files: bool = False
    """True if each file of plain text is a document; otherwise it is so only in a text with records."""


DEFAULT_READING = Reading()
"""That of a configuration without settings of it."""


def reading_of(data: DataConfig, scratch: Path | None = None) -> Reading:
    """Return how the records of a configuration become documents; `scratch` is a folder for a temporary file."""
    return Reading(RecordDocuments(FieldDocuments(data.field), ConversationDocuments.of(data, scratch)), data.invalid)


def format_of(path: Path) -> RecordFormat | None:
    """Return the format of a file with records, by its suffix or its first bytes; None for plain text.

    A file that cannot be read has none: its error is that of plain text.
    """
    return _by_suffix(path) or _by_content(path)


def has_record_suffix(path: Path) -> bool:
    """Return True if the suffix of a file is that of a format with records."""
    return _by_suffix(path) is not None


def _by_suffix(path: Path) -> RecordFormat | None:
    suffix = path.suffix.lower()
    compressed = suffix in _COMPRESSED
    if compressed:
        suffix = Path(path.stem).suffix.lower()
    return next((found for found in FORMATS if suffix in found.suffixes and found.compressible >= compressed), None)


def _by_content(path: Path) -> RecordFormat | None:
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return None
    return next((found for found in FORMATS if found.recognises(head)), None)


def documents(path: Path, found: RecordFormat, maker: DocumentMaker) -> Iterator[Document | RecordError]:
    """Yield the documents of a file, which may be empty, and the errors of its invalid records, in order."""
    with maker.opened() as make:
        for origin, fields in found.records(path, maker):
            if isinstance(fields, RecordError):
                yield fields
                continue
            try:
                document = make(fields, origin)
            except RecordError as error:
                yield error
                continue
            yield _error_of(document.text, origin) or document


def _error_of(text: str, origin: Origin) -> RecordError | None:
    """Return the error of a text that is too long or that UTF-8 cannot encode."""
    if len(text) > LONGEST_RECORD:
        return RecordError(origin, f"a text of at most {LONGEST_RECORD:,} characters", f"one of {len(text):,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"the lone surrogate U+{ord(text[error.start]):04X} at character {error.start + 1:,}"
        return RecordError(origin, "a text that UTF-8 can encode", got)
    return None
