"""Reading files and directories into one text; the source of Python's standard library as the default text.

The text depends only on the names and contents of the files (`text_files`), each of which is UTF-8 text
(`text_decoding`). A byte order mark at the start of a file is dropped, line ends are kept, and a line end is added
between files if the first of them has none. Files are read in chunks, and again for each use of the text, which is
never in memory as a whole.
"""

import hashlib
import sysconfig
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from threadloom.stages.console import PeriodicLog
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.text_decoding import text_chunks, unreadable
from threadloom.stages.data.text_files import FileId, LeftOut, file_ids, find_files
from threadloom.stages.data.text_format import TextError

STANDARD_LIBRARY_LIMIT = 12_000_000
"""Maximum number of characters of the standard library that are read."""

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
    separator: str = ""
    """The line end that follows it in the text, if it has none and is not the last."""


@dataclass(frozen=True)
class Text(ChunkedText):
    """The text of files, as they were when they were first read."""

    characters: int
    sha256: str
    """Checksum of the text in UTF-8."""
    files: tuple[TextFile, ...]
    """Its files, in order."""
    left_out: tuple[LeftOut, ...]
    """Files and whole directories that were found in directories and are not part of the text."""

    def checksum(self) -> str:
        """Return the SHA-256 of the text in UTF-8."""
        return self.sha256

    def chunks(self) -> Iterator[str]:
        """Yield the text in chunks. Raises TextError for a file that has changed, except one that has only grown."""
        for file in self.files:
            yield from _unchanged_chunks(file)
            if file.separator:
                yield file.separator


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
    `limit` is the maximum number of characters of all files. Raises TextError for a named path that cannot be read or
    is not UTF-8, with the likely format and a remedy, for a text beyond the limit, and for an empty text.
    """
    given = [text_path(path) for path in paths]
    if not given:
        return standard_library_text()
    reader = _Reader(limit)
    ids = file_ids(excluded)
    for path in given:
        if _is_directory(path):
            reader.read_directory(path, ids)
        else:
            reader.read(path)
    if not reader.characters:
        count, others = len(reader.files), len(reader.left_out)
        raise TextError(
            ", ".join(map(str, given)),
            expected="text to train on",
            got=f"no character in {count} files, {others} others left out{_reasons(reader.left_out)}",
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


class _TooLargeError(TextError):
    """A file with which the text exceeds its limit."""


@dataclass
class _Reader:
    """The files that have been read. A file is added whole or not at all."""

    limit: int | None
    characters: int = 0
    """Number of characters of the files, without separators."""
    files: list[TextFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _separator: str = ""
    """The line end that a further file requires."""
    _progress: PeriodicLog = field(default_factory=PeriodicLog)

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
        size, own, whole, last = 0, hashlib.sha256(), self._digest.copy(), ""
        whole.update(self._separator.encode())
        for chunk in text_chunks(file):
            size, last = size + len(chunk), chunk[-1]
            if self.limit is not None and self.characters + size > self.limit:
                raise _TooLargeError(
                    str(file),
                    expected=f"a text of at most {self.limit:,} characters in total",
                    got="a larger one",
                    hint="use a part of the text",
                )
            content = chunk.encode()
            own.update(content)
            whole.update(content)
            self._progress("reading the text: {:,} characters", self.characters + size)
        if self.files:
            self.files[-1] = self.files[-1]._replace(separator=self._separator)
        self.files.append(TextFile(file, size, own.hexdigest()))
        self.characters += size
        self._digest, self._separator = whole, "" if last in ("", "\n", "\r") else "\n"

    def text(self) -> Text:
        """Return the text of all files, with a line end after each that has none, except the last."""
        separators = sum(len(file.separator) for file in self.files)
        checksum = self._digest.hexdigest()
        return Text(self.characters + separators, checksum, tuple(self.files), tuple(self.left_out))


def _unchanged_chunks(file: TextFile) -> Iterator[str]:
    """Yield the text of a file as it was before; raises TextError if it has changed."""
    digest, left = hashlib.sha256(), file.characters
    for chunk in text_chunks(file.path) if left else ():
        kept = chunk[:left]
        digest.update(kept.encode())
        left -= len(kept)
        yield kept
        if not left:
            break
    if left or digest.hexdigest() != file.sha256:
        raise TextError(
            str(file.path),
            expected="the text that it had when it was read first",
            got="another one",
            cause="another program writes to the file",
            hint="start again when it has finished, or pass a copy of the file",
        )


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
