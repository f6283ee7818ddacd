"""Reading files and directories into one text; the source of Python's standard library as the default text.

The text depends only on the names and contents of the files (`text_files`), each of which is UTF-8 text
(`text_decoding`). A byte order mark at the start of a file is dropped, line ends are kept, and a line end is added
between files if the first of them has none.
"""

import hashlib
import sysconfig
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from threadloom.stages.data.text_decoding import text_chunks, unreadable
from threadloom.stages.data.text_files import FileId, LeftOut, file_ids, find_files
from threadloom.stages.data.text_format import TextError
from threadloom.stages.machine import detect

STANDARD_LIBRARY_LIMIT = 12_000_000
"""Maximum number of characters of the standard library that are read."""

PREPARATION_BYTES = 10
"""Bytes of memory, at least, that the preparation of a text takes per character."""

_NOT_IN_EVERY_PYTHON = frozenset(
    (
        "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo", "tkinter", "ensurepip", "encodings",
        "pydoc_data",
    )
)  # fmt: skip
"""Parts of the standard library that some systems package separately or newer versions dropped, and code tables."""

_URI = "file:///"


class TextFile(NamedTuple):
    """One file of a text."""

    path: Path
    characters: int
    sha256: str
    """Checksum of its text in UTF-8."""


@dataclass(frozen=True)
class Text:
    """A text and its sources."""

    text: str
    files: tuple[TextFile, ...]
    """Its files, in order."""
    left_out: tuple[LeftOut, ...]
    """Files and whole directories that were found in directories and are not part of the text."""


def text_path(text: str | Path) -> Path:
    """Return the path of a text: a path as it is, or the path in a file URI, whose bytes need not be UTF-8."""
    if isinstance(text, str) and text.startswith(_URI):
        return Path(urllib.parse.unquote(text[len(_URI) - 1 :], "utf-8", "surrogateescape"))
    return Path(text)


def absolute_text(text: str | Path) -> str:
    """Return the name of a text that is valid in any directory: its absolute path, or a file URI if that is not UTF-8.

    JSON cannot hold a path that is not UTF-8.
    """
    path = text_path(text).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return str(path)


def read_text(paths: Iterable[str | Path], excluded: Sequence[Path] = (), limit: int | None = None) -> Text:
    """Return the text of files and directories, in order; without paths, that of the standard library.

    A named file must be UTF-8 text, which may be compressed. In directories, such files with a suffix of
    `TEXT_SUFFIXES` are read and the others left out, as are `excluded` directories, runs and unreadable entries.
    `limit` is the maximum number of characters, by default as many as the available memory can prepare. Raises
    TextError for a named path that cannot be read or is not UTF-8, with the likely format and a remedy, for a text
    beyond the limit, and for an empty text.
    """
    given = [text_path(path) for path in paths]
    if not given:
        return standard_library_text()
    reader = _Reader(_memory_limit() if limit is None else limit)
    ids = file_ids(excluded)
    for path in given:
        if _is_directory(path):
            reader.read_directory(path, ids)
        else:
            reader.read(path)
    text = reader.joined()
    if not text:
        count, others = len(reader.files), len(reader.left_out)
        raise TextError(
            ", ".join(map(str, given)),
            expected="text to train on",
            got=f"no character in {count} files, {others} others left out{_reasons(reader.left_out)}",
        )
    return Text(text, tuple(reader.files), tuple(reader.left_out))


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
    text = reader.joined()
    if not text:
        raise TextError(
            str(root),
            expected="the source of Python's standard library (*.py)",
            got="none",
            cause="this Python was installed without its source (a frozen or zipped library)",
            hint="pass a text with --text FILE_OR_DIR",
        )
    return Text(text, tuple(reader.files), tuple(reader.left_out))


class _TooLargeError(TextError):
    """A file with which the text exceeds its limit."""


@dataclass
class _Reader:
    """The files that have been read. A file is added whole or not at all."""

    limit: int
    characters: int = 0
    parts: list[str] = field(default_factory=list)
    files: list[TextFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def read_directory(self, root: Path, excluded: frozenset[FileId]) -> None:
        """Add the files of a directory; those that are not text are left out."""
        for file in find_files(root, self.left_out, excluded):
            try:
                self.read(file)
            except _TooLargeError:
                raise
            except TextError as error:
                self.left_out.append(_failed(file, error))

    def read(self, file: Path) -> None:
        """Add a file; raises TextError."""
        chunks, size, digest = [], 0, hashlib.sha256()
        for chunk in text_chunks(file):
            size += len(chunk)
            if self.characters + size > self.limit:
                raise _TooLargeError(
                    str(file),
                    expected=f"a text of at most {self.limit:,} characters in total",
                    got="a larger one",
                    cause=f"its preparation takes {PREPARATION_BYTES} bytes of memory per character",
                    hint="use a part of the text",
                )
            digest.update(chunk.encode())
            chunks.append(chunk)
        self.characters += size
        self.parts.append("".join(chunks))
        self.files.append(TextFile(file, size, digest.hexdigest()))

    def joined(self) -> str:
        """Return the text of all files, with a line end after each that has none, except the last."""
        ended = [part if part.endswith(("\n", "\r")) or not part else part + "\n" for part in self.parts[:-1]]
        return "".join([*ended, *self.parts[-1:]])


def _failed(file: Path, error: TextError) -> LeftOut:
    reason = f"{error.got}; {error.cause}" if error.cause else error.got
    return LeftOut(file, f"{reason}. {error.hint}" if error.hint else reason, failed=True)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:  # a parent that may not be searched, a null character
        raise unreadable(path, error) from error


def _memory_limit() -> int:
    available = detect().memory_available
    return 1 << 62 if available is None else available // PREPARATION_BYTES


def _reasons(left_out: Sequence[LeftOut]) -> str:
    shown = "; ".join(f"{found.path}: {found.reason}" for found in left_out[:3])
    return f" ({shown}{'; ...' if len(left_out) > 3 else ''})" if shown else ""
