"""Reading files, directories and patterns into a text; by default, the source of Python's standard library."""

import hashlib
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from threadloom.stages.config import InvalidRecords
from threadloom.stages.console import PeriodicLog
from threadloom.stages.data.sources.records import RecordError, RecordFormat
from threadloom.stages.data.sources.registry import DEFAULT_READING, Reading, documents, format_of
from threadloom.stages.data.sources.token_files import ids_of_text, is_token_file, token_chunks
from threadloom.stages.data.text import SkippedRecords, Text, TextFile, add_document, ended
from threadloom.stages.data.text_decoding import text_chunks, unreadable
from threadloom.stages.data.text_files import FileId, LeftOut, file_ids, find_files, pattern_files
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_paths import STANDARD_INPUT, is_pattern, text_path

STANDARD_LIBRARY_LIMIT = 12_000_000
"""Maximum number of characters of the standard library that are read."""

_NOT_IN_EVERY_PYTHON = frozenset(
    (
        "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo", "tkinter", "ensurepip", "encodings",
        "pydoc_data",
    )
)  # fmt: skip
"""Parts of the standard library that some systems package separately or newer versions dropped, and code tables."""


def read_text(
    paths: Iterable[str | Path],
    excluded: Sequence[Path] = (),
    limit: int | None = None,
    reading: Reading = DEFAULT_READING,
) -> Text:
    """Return the text of files, directories and patterns, in order; without paths, that of the standard library.

    A named file, or one that matches a pattern, must be UTF-8 text, which may be compressed, or a file of records. In
    directories, such files with a suffix of `TEXT_SUFFIXES` or of records are read and the others left out, as are
    `excluded` directories, runs and unreadable entries. `limit` is the maximum number of characters of all files.
    Raises TextError for a named path that cannot be read or is not UTF-8, with the likely format and a remedy, for a
    text beyond the limit, and for an empty text; RecordError for an invalid record that `reading` refuses.
    """
    given = [text_path(path) for path in paths]
    if Path(STANDARD_INPUT) in given:
        raise TextError(
            STANDARD_INPUT,
            expected="a file, a directory or a pattern",
            got="standard input, which is read as the --text of `threadloom train`, `prepare`, `show-data` and `eval`",
            hint="write it to a file first; a file of this name is ./-",
        )
    if not given:
        return standard_library_text()
    reader = _Reader(limit, reading)
    ids = file_ids(excluded)
    for path in given:
        if _is_directory(path):
            reader.read_directory(path, ids)
        elif is_pattern(path):
            reader.read_pattern(path, ids)
        else:
            reader.read(path)
    if not reader.characters:
        count, others = len(reader.files), len(reader.left_out)
        raise TextError(
            ", ".join(map(str, given)),
            expected="text to train on",
            got=f"no character in {count} files, {others} others left out{_reasons(reader.left_out)}"
            + _skipped_records(reader.skipped),
        )
    return reader.text()


def standard_library_text(limit: int = STANDARD_LIBRARY_LIMIT) -> Text:
    """Return the source of Python's standard library, a text that is available on every machine.

    It consists of the *.py files in sorted order, whole files up to `limit` characters, without parts that a system may
    package separately (tests, idlelib, ...), generated files and installed packages. Raises TextError if there is none.
    """
    root = Path(sysconfig.get_path("stdlib"))
    reader = _Reader(limit)
    for file in find_files(root, reader.left_out, frozenset(), _NOT_IN_EVERY_PYTHON):
        if file.suffix != ".py" or file.name.startswith("_sysconfigdata") or file.parent.name.startswith("config-"):
            continue
        try:
            reader.read(file)
        except _TooLargeError:
            reader.left_out.append(LeftOut(file, f"beyond the limit of {limit:,} characters"))
        except TextError as error:
            reader.left_out.append(_failed(file, error))
    if not reader.characters:
        raise TextError(
            str(root),
            expected="the source of Python's standard library (*.py)",
            got="none",
            cause="this Python was installed without its source (a frozen or zipped library)",
            hint="pass a text with --text FILE_OR_DIR",
        )
    return reader.text()


MOST_REASONS = 10
"""Maximum number of invalid records of a file whose reasons are kept."""


class _TooLargeError(TextError):
    """A file with which the text exceeds its limit."""


@dataclass
class _Reader:
    """The files that have been read. A file is added whole or not at all."""

    limit: int | None
    reading: Reading = DEFAULT_READING
    characters: int = 0
    """Number of characters of the files, without separators."""
    files: list[TextFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    skipped: list[SkippedRecords] = field(default_factory=list)
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    """Checksum of the running text, which is not that of a text with records."""
    _documents_digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _separator: str = ""
    """The line end that a further file requires."""
    _progress: PeriodicLog = field(default_factory=PeriodicLog)

    def read_directory(self, root: Path, excluded: frozenset[FileId]) -> None:
        """Add the files of a directory; those that are not text are left out."""
        for file in find_files(root, self.left_out, excluded):
            try:
                self.read(file)
            except (_TooLargeError, RecordError):
                raise
            except TextError as error:
                self.left_out.append(_failed(file, error))

    def read_pattern(self, pattern: Path, excluded: frozenset[FileId]) -> None:
        """Add the files that a pattern names; raises TextError if there are none."""
        files = list(pattern_files(pattern, self.left_out, excluded))
        if not files:
            raise TextError(
                str(pattern),
                expected="files whose paths match the pattern",
                got="none",
                hint="** stands for any number of directories, * for any part of a name; quote the pattern",
            )
        for file in files:
            self.read(file)

    def read(self, file: Path) -> None:
        """Add a file; raises TextError."""
        found = format_of(file)
        if is_token_file(file):
            self._read_tokens(file)
        elif found is None:
            self._read_plain(file)
        else:
            self._read_records(file, found)

    def _read_plain(self, file: Path) -> None:
        size, own, whole, last = 0, hashlib.sha256(), self._digest.copy(), ""
        whole.update(self._separator.encode())
        for chunk in text_chunks(file):
            size, last = size + len(chunk), chunk[-1]
            self._grow(file, size)
            content = chunk.encode()
            own.update(content)
            whole.update(content)
        self._add(TextFile(file, size, own.hexdigest()), last)
        self._digest = whole
        self._documents_digest.update(b"F" + own.digest())

    def _read_tokens(self, file: Path) -> None:
        size, own, whole, largest = 0, hashlib.sha256(), self._digest.copy(), 0
        for chunk in token_chunks(file):
            size, largest = size + len(chunk), max(largest, int(ids_of_text(chunk).max()))
            self._grow(file, size)
            content = chunk.encode()
            own.update(content)
            whole.update(content)
        self._add(TextFile(file, size, own.hexdigest(), largest_id=largest), "")
        self._digest = whole
        self._documents_digest.update(b"F" + own.digest())

    def _read_records(self, file: Path, found: RecordFormat) -> None:
        size, own, whole, count = 0, hashlib.sha256(), self._documents_digest.copy(), 0
        invalid, empty, reasons = 0, 0, list[str]()
        for document in documents(file, found, self.reading.maker):
            if isinstance(document, RecordError):
                if self.reading.invalid is InvalidRecords.REFUSE:
                    raise document
                invalid += 1
                if len(reasons) < MOST_REASONS:
                    reasons.append(f"{document.subject}: expected {document.expected}, got {document.got}")
                continue
            if not document.text:
                empty += 1
                continue
            count, size = count + 1, size + len(ended(document.text))
            self._grow(file, size)
            add_document(own, document)
            add_document(whole, document)
        self._add(TextFile(file, size, own.hexdigest(), records=count), "")
        self._documents_digest = whole
        if invalid or empty:
            self.skipped.append(SkippedRecords(file, invalid, empty, tuple(reasons)))

    def _grow(self, file: Path, size: int) -> None:
        """Report `size` characters of a file; raises _TooLargeError."""
        if self.limit is not None and self.characters + size > self.limit:
            raise _TooLargeError(
                str(file),
                expected=f"a text of at most {self.limit:,} characters in total",
                got="a larger one",
                hint="use a part of the text",
            )
        self._progress("reading the text: {:,} characters", self.characters + size)

    def _add(self, file: TextFile, last: str) -> None:
        """Add a file whose text ends with the character `last`."""
        if self.files:
            self.files[-1] = self.files[-1]._replace(separator=self._separator)
        self.files.append(file)
        self.characters += file.characters
        self._separator = "" if last in ("", "\n", "\r") else "\n"

    def text(self) -> Text:
        """Return the text of all files, with a line end after each that has none, except the last.

        Raises TextError if it has text and token files.
        """
        largest = [file.largest_id for file in self.files if file.largest_id is not None]
        if largest and len(largest) < len(self.files):
            tokens, texts = ([file for file in self.files if (file.largest_id is None) == of] for of in (False, True))
            raise TextError(
                str(tokens[0].path),
                expected="texts alone, or token files alone",
                got=f"token ids in this file, and text in {texts[0].path}",
                hint="leave one of them out, or write the text to a token file",
            )
        separators = sum(len(file.separator) for file in self.files)
        text = Text(
            self.characters + separators,
            self._digest.hexdigest(),
            tuple(self.files),
            tuple(self.left_out),
            tuple(self.skipped),
            largest_id=max(largest, default=None),
            reading=self.reading,
            documents_sha256=self._documents_digest.hexdigest(),
        )
        has_records = any(file.records is not None for file in self.files)
        return text.as_documents() if has_records or self.reading.whole_files else text


def _failed(file: Path, error: TextError) -> LeftOut:
    reason = f"{error.got}; {error.cause}" if error.cause else error.got
    return LeftOut(file, f"{reason}. {error.hint}" if error.hint else reason, failed=True)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:  # a parent that may not be searched, a null character
        raise unreadable(path, error) from error


def _reasons(left_out: Sequence[LeftOut]) -> str:
    shown = "; ".join(f"{found.path}: {found.reason}" for found in left_out[:3])
    return f" ({shown}{'; ...' if len(left_out) > 3 else ''})" if shown else ""


def _skipped_records(skipped: Sequence[SkippedRecords]) -> str:
    if not skipped:
        return ""
    first = next((f", such as {found.reasons[0]}" for found in skipped if found.reasons), "")
    invalid, empty = sum(found.invalid for found in skipped), sum(found.empty for found in skipped)
    return f"; {invalid:,} invalid and {empty:,} empty records left out{first}"
