"""The files of a text below a directory, in sorted order, and the entries that are left out.

Directories are walked in the order of their entries' names (by code point), regardless of the file system's order,
times and locale. Runs of this package are left out, as are the files to which this process writes its output: a run
must not learn from the previous one, and its text must be the same when it is resumed.
"""

import contextlib
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from threadloom.stages.data.compression import COMPRESSIONS
from threadloom.stages.data.sources.registry import has_record_suffix
from threadloom.stages.data.text_decoding import unreadable
from threadloom.stages.data.text_paths import matching_files
from threadloom.stages.storage import holds_training_files

TEXT_SUFFIXES = frozenset(
    (
        "", ".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".bib", ".log",
        ".py", ".pyi", ".pyx", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cs", ".go", ".java", ".js",
        ".jsx", ".jl", ".kt", ".lua", ".m", ".ml", ".hs", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".bash",
        ".sql", ".swift", ".ts", ".tsx", ".zig", ".lisp", ".el", ".clj", ".ex", ".erl", ".f90", ".cmake", ".mk",
        ".css", ".html", ".htm", ".xml", ".svg", ".json", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".csv",
        ".tsv", ".srt",
    )
)  # fmt: skip
"""Lower-case suffixes of the files that are read from directories, also with a suffix of a compressed file after them;
an explicitly named file may have any suffix."""

SKIPPED_DIRECTORIES = frozenset(("__pycache__", "site-packages", "dist-packages", "node_modules", "venv"))
"""Directories that are left out, in addition to hidden ones and links to directories (which may be cyclic)."""

_COMPRESSED = frozenset(compression.suffix for compression in COMPRESSIONS)

OUTPUT = "the output of this command"
"""The reason of files to which standard output or standard error is written."""

FileId = tuple[int, int]
"""Device and inode."""


class LeftOut(NamedTuple):
    """A file or a directory that is not part of the text, and the reason."""

    path: Path
    reason: str
    failed: bool = False
    """True if it should have been part of the text, but could not be read; False if the rules exclude it."""


def file_ids(paths: Iterable[Path]) -> frozenset[FileId]:
    """Return the identities of paths and of the files to which standard output and standard error are written."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):  # it does not exist yet
            found.add(_identity(path.stat()))
    for output in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            status = os.fstat(output)
            if stat.S_ISREG(status.st_mode):
                found.add(_identity(status))
    return frozenset(found)


def find_files(
    root: Path, left_out: list[LeftOut], excluded: frozenset[FileId], names: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """Yield the files with a suffix of text below a directory, in sorted order; append the others to `left_out`.

    `excluded` and `names` are the identities and the names of entries to leave out. Raises TextError if `root` itself
    cannot be read.
    """
    try:
        if reason := _reason_of_directory(root, excluded):
            left_out.append(LeftOut(root, reason))
            return
        pending = [_entries(root)]
    except OSError as error:
        raise unreadable(root, error) from error
    while pending:  # not recursive: directories may be nested deeper than Python's calls
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        path = Path(entry.path)
        try:
            is_directory = entry.is_dir()
            reason = _reason(entry, path, is_directory=is_directory, excluded=excluded, names=names)
            if reason is not None:
                left_out.append(LeftOut(path, reason))
            elif is_directory:
                pending.append(_entries(path))
            else:
                yield path
        except OSError as error:
            left_out.append(LeftOut(path, error.strerror or type(error).__name__, failed=True))


def pattern_files(pattern: Path, left_out: list[LeftOut], excluded: frozenset[FileId]) -> Iterator[Path]:
    """Yield the files that a pattern names, in sorted order; append those of runs and of the output to `left_out`."""
    fixed = next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))
    known: dict[Path, str | None] = {}
    for path in matching_files(pattern):
        reason = OUTPUT if _is_excluded(path, excluded) else None
        for directory in path.relative_to(fixed).parents[:-1]:
            if directory not in known:
                known[directory] = _reason_of_directory(fixed / directory, excluded)
            reason = reason or known[directory]
        if reason:
            left_out.append(LeftOut(path, reason))
        else:
            yield path


def has_text_suffix(name: str) -> bool:
    """Return True if a file of this name is read from a directory."""
    path = Path(name)
    if has_record_suffix(path):
        return True
    suffix = path.suffix.lower()
    return (Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix) in TEXT_SUFFIXES


def _entries(directory: Path) -> "Iterator[os.DirEntry[str]]":
    with os.scandir(directory) as found:
        return iter(sorted(found, key=lambda entry: entry.name))


def _reason(
    entry: "os.DirEntry[str]", path: Path, *, is_directory: bool, excluded: frozenset[FileId], names: frozenset[str]
) -> str | None:
    """Return why an entry is left out, or None; raises OSError."""
    if entry.name.startswith("."):
        return "hidden"
    if is_directory:
        if entry.name in SKIPPED_DIRECTORIES or entry.name in names:
            return "an excluded directory"
        return "a link to a directory" if entry.is_symlink() else _reason_of_directory(path, excluded)
    if not entry.is_file():
        entry.stat()  # raises for a link to nothing and for a cycle of links
        return "not a regular file"
    if not has_text_suffix(entry.name):
        return f"not a suffix of text: {path.suffix}"
    return OUTPUT if _is_excluded(path, excluded) else None


def _reason_of_directory(directory: Path, excluded: frozenset[FileId]) -> str | None:
    if _is_excluded(directory, excluded):
        return "the directory of this run"
    return "a run or a checkpoint of threadloom" if holds_training_files(directory) else None


def _is_excluded(path: Path, excluded: frozenset[FileId]) -> bool:
    try:
        return _identity(path.stat()) in excluded
    except OSError:  # reported when it is read
        return False


def _identity(status: os.stat_result) -> FileId:
    return status.st_dev, status.st_ino
