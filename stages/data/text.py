"""Reading text: files and directories into one text, and the text that every machine has.

What is read depends on the files' names and contents alone: directories are walked in the order of their entries'
names (by code point), and nothing of the file system's own order, times or locale enters. Files are UTF-8; a byte order
mark at the front is dropped, line ends stay as they are, and a line end is put between files where the first has none.
"""

import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from threadloom.stages.config import InputError

TEXT_SUFFIXES = frozenset(
    (
        "", ".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".bib", ".log",
        ".py", ".pyi", ".pyx", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cs", ".go", ".java", ".js",
        ".jsx", ".jl", ".kt", ".lua", ".m", ".ml", ".hs", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".bash",
        ".sql", ".swift", ".ts", ".tsx", ".zig", ".lisp", ".el", ".clj", ".ex", ".erl", ".f90", ".cmake", ".mk",
        ".css", ".html", ".htm", ".xml", ".svg", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".csv",
        ".tsv", ".srt",
    )
)  # fmt: skip
"""Files of a directory that are taken for text, by their lower-case suffix; a file named outright may have any."""

SKIPPED_DIRECTORIES = frozenset(("__pycache__", "site-packages", "dist-packages", "node_modules", "venv"))
"""Directories that are not walked into; nor are hidden ones, nor links to directories (they may form circles)."""

STANDARD_LIBRARY_LIMIT = 12_000_000
"""Characters of the standard library's source that are taken at most."""

_NOT_IN_EVERY_PYTHON = frozenset(
    (
        "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo", "tkinter", "ensurepip", "encodings",
        "pydoc_data",
    )
)  # fmt: skip
"""Parts of the standard library that some systems package apart or newer versions dropped, and tables of codes."""


class TextError(InputError):
    """A text that cannot be read; `subject` is the file or directory."""


@dataclass(frozen=True)
class Text:
    """A text and where it came from."""

    text: str
    files: tuple[Path, ...]
    """The files that it consists of, in their order."""
    skipped: tuple[tuple[Path, str], ...]
    """What was found in directories and left out, each with the reason; a directory stands for all that is in it."""


def read_text(paths: Iterable[str | Path]) -> Text:
    """Return the text of files and directories, in the order given; no path at all: the standard library's.

    A file that is named must be UTF-8 text (TextError with the offset of the first byte that is not); in directories
    only such files with a suffix of TEXT_SUFFIXES are taken, the others are reported as skipped. TextError too for a
    path that is not there or cannot be read, and where there is no character in the end.
    """
    given = [Path(path) for path in paths]
    if not given:
        return standard_library_text()
    parts: list[str] = []
    files: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for path in given:
        if path.is_dir():
            for file in _walk(path, skipped):
                try:
                    part = _read(file)
                except TextError as error:
                    skipped.append((file, error.got))
                    continue
                files.append(file)
                parts.append(part)
        else:
            parts.append(_read(path))
            files.append(path)
    text = _joined(parts)
    if not text:
        raise TextError(
            ", ".join(map(str, given)),
            expected="text to train on",
            got=f"no character in {len(files)} files, {len(skipped)} others skipped{_reasons(skipped)}",
            cause="the files are empty, or not of a kind that is taken for text in a directory",
            hint="name files that hold UTF-8 text",
        )
    return Text(text, tuple(files), tuple(skipped))


def standard_library_text(limit: int = STANDARD_LIBRARY_LIMIT) -> Text:
    """Return the source of Python's own standard library: the text that every machine has.

    Its *.py files in sorted order, without what a system may package apart (tests, idlelib, ...), what is made for the
    machine, and what was installed besides; whole files up to `limit` characters. TextError where there is none.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    files: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    total = 0
    for file in _walk(root, skipped, _NOT_IN_EVERY_PYTHON):
        if file.suffix != ".py" or file.name.startswith("_sysconfigdata") or file.parent.name.startswith("config-"):
            continue
        try:
            part = _read(file)
        except TextError as error:
            skipped.append((file, error.got))
            continue
        if total + len(part) > limit:
            skipped.append((file, f"beyond the {limit:,} characters that are taken"))
            continue
        total += len(part)
        parts.append(part)
        files.append(file)
    text = _joined(parts)
    if not text:
        raise TextError(
            str(root),
            expected="the source of Python's standard library (*.py)",
            got="none",
            cause="this Python was installed without its source (a frozen or zipped library)",
            hint="name a text of your own: --text FILE_OR_DIR",
        )
    return Text(text, tuple(files), tuple(skipped))


def _walk(root: Path, skipped: list[tuple[Path, str]], besides: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the text-like files below a directory in sorted order, noting what is left out."""
    try:
        entries = sorted(root.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(root, error) from error
    for entry in entries:
        if entry.name.startswith("."):
            skipped.append((entry, "hidden"))
        elif entry.is_dir():
            if entry.name in SKIPPED_DIRECTORIES or entry.name in besides:
                skipped.append((entry, "a directory that is left out"))
            elif entry.is_symlink():
                skipped.append((entry, "a link to a directory"))
            else:
                yield from _walk(entry, skipped, besides)
        elif not entry.is_file():
            skipped.append((entry, "not a regular file"))
        elif entry.suffix.lower() not in TEXT_SUFFIXES:
            skipped.append((entry, f"not a suffix of text: {entry.suffix}"))
        else:
            yield entry


def _read(file: Path) -> str:
    """The text of one file; TextError where it cannot be read or is no UTF-8 text."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _binary(file, error.start, raw[error.start]) from error
    zero = raw.find(b"\0")
    if zero >= 0:
        raise _binary(file, zero, 0)
    return text.removeprefix("\ufeff")


def _joined(parts: list[str]) -> str:
    ended = [part if part.endswith(("\n", "\r")) or not part else part + "\n" for part in parts[:-1]]
    return "".join([*ended, *parts[-1:]])


def _reasons(skipped: list[tuple[Path, str]]) -> str:
    shown = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
    return f" ({shown}{'; ...' if len(skipped) > 3 else ''})" if shown else ""


def _binary(file: Path, offset: int, byte: int) -> TextError:
    return TextError(
        str(file),
        expected="UTF-8 text",
        got=f"byte 0x{byte:02x} at offset {offset:,}",
        cause="a binary file, or a text in another encoding",
        hint=f"leave it out, or convert it: iconv -f LATIN1 -t UTF-8 {file.name}",
    )


def _unreadable(path: Path, error: OSError) -> TextError:
    return TextError(
        str(path),
        expected="a file or directory that can be read",
        got=error.strerror or type(error).__name__,
        cause="the path is misspelt, relative to another directory, or not permitted",
        hint="check it with ls -l",
    )
