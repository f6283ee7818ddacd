"""Reading files and directories into one text; the source of Python's standard library as the default text.

The text depends only on the names and contents of the files: directories are walked in the order of their entries'
names (by code point), regardless of the file system's order, times and locale. Files are UTF-8; a byte order mark at
the start is dropped, line ends are kept, and a line end is added between files if the first of them has none.
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
"""Lower-case suffixes of the files that are read from directories; an explicitly named file may have any suffix."""

SKIPPED_DIRECTORIES = frozenset(("__pycache__", "site-packages", "dist-packages", "node_modules", "venv"))
"""Directories that are skipped, in addition to hidden ones and links to directories (which may be cyclic)."""

STANDARD_LIBRARY_LIMIT = 12_000_000
"""Maximum number of characters of the standard library that are read."""

_NOT_IN_EVERY_PYTHON = frozenset(
    (
        "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo", "tkinter", "ensurepip", "encodings",
        "pydoc_data",
    )
)  # fmt: skip
"""Parts of the standard library that some systems package separately or newer versions dropped, and code tables."""


class TextError(InputError):
    """A text that cannot be read; `subject` is the file or directory."""


@dataclass(frozen=True)
class Text:
    """A text and its sources."""

    text: str
    files: tuple[Path, ...]
    """Its files, in order."""
    skipped: tuple[tuple[Path, str], ...]
    """Files and whole directories that were found in directories and skipped, each with the reason."""


def read_text(paths: Iterable[str | Path]) -> Text:
    """Return the text of files and directories, in order; without paths, that of the standard library.

    A named file must be UTF-8 text. In directories, UTF-8 files with a suffix of `TEXT_SUFFIXES` are read and the
    others reported as skipped. Raises TextError for a named file that is not UTF-8 (with the offset of the first
    invalid byte), for a path that does not exist or cannot be read, and for an empty text.
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
    text = _join(parts)
    if not text:
        raise TextError(
            ", ".join(map(str, given)),
            expected="text to train on",
            got=f"no character in {len(files)} files, {len(skipped)} others skipped{_reasons(skipped)}",
        )
    return Text(text, tuple(files), tuple(skipped))


def standard_library_text(limit: int = STANDARD_LIBRARY_LIMIT) -> Text:
    """Return the source of Python's standard library, a text that is available on every machine.

    It consists of the *.py files in sorted order, whole files up to `limit` characters, without parts that a system may
    package separately (tests, idlelib, ...), generated files and installed packages. Raises TextError if there is none.
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
            skipped.append((file, f"beyond the limit of {limit:,} characters"))
            continue
        total += len(part)
        parts.append(part)
        files.append(file)
    text = _join(parts)
    if not text:
        raise TextError(
            str(root),
            expected="the source of Python's standard library (*.py)",
            got="none",
            cause="this Python was installed without its source (a frozen or zipped library)",
            hint="pass a text with --text FILE_OR_DIR",
        )
    return Text(text, tuple(files), tuple(skipped))


def _walk(root: Path, skipped: list[tuple[Path, str]], excluded: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the files with a suffix of text below a directory, in sorted order; append the others to `skipped`."""
    try:
        entries = sorted(root.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(root, error) from error
    for entry in entries:
        if entry.name.startswith("."):
            skipped.append((entry, "hidden"))
        elif entry.is_dir():
            if entry.name in SKIPPED_DIRECTORIES or entry.name in excluded:
                skipped.append((entry, "an excluded directory"))
            elif entry.is_symlink():
                skipped.append((entry, "a link to a directory"))
            else:
                yield from _walk(entry, skipped, excluded)
        elif not entry.is_file():
            skipped.append((entry, "not a regular file"))
        elif entry.suffix.lower() not in TEXT_SUFFIXES:
            skipped.append((entry, f"not a suffix of text: {entry.suffix}"))
        else:
            yield entry


def _read(file: Path) -> str:
    """Return the text of one file; raises TextError if it cannot be read or is not UTF-8."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(file, error.start, raw[error.start]) from error
    zero = raw.find(b"\0")
    if zero >= 0:
        raise _not_text(file, zero, 0)
    return text.removeprefix("\ufeff")


def _join(parts: list[str]) -> str:
    ended = [part if part.endswith(("\n", "\r")) or not part else part + "\n" for part in parts[:-1]]
    return "".join([*ended, *parts[-1:]])


def _reasons(skipped: list[tuple[Path, str]]) -> str:
    shown = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
    return f" ({shown}{'; ...' if len(skipped) > 3 else ''})" if shown else ""


def _not_text(file: Path, offset: int, byte: int) -> TextError:
    return TextError(
        str(file),
        expected="UTF-8 text",
        got=f"byte 0x{byte:02x} at offset {offset:,}",
        cause="a binary file, or another encoding",
        hint=f"convert the encoding: iconv -f LATIN1 -t UTF-8 {file.name}",
    )


def _unreadable(path: Path, error: OSError) -> TextError:
    return TextError(
        str(path),
        expected="a readable file or directory",
        got=error.strerror or type(error).__name__,
    )
