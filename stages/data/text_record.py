"""The record of a text in its run: the files it consists of, and all that was left out, with reasons."""

from pathlib import Path
from typing import Protocol

import msgspec

from threadloom.stages.data.text import SkippedRecords, TextFile
from threadloom.stages.data.text_files import OUTPUT, LeftOut
from threadloom.stages.data.text_paths import absolute_text, text_path
from threadloom.stages.storage import atomic_write

SOURCES_FILE = "sources.json"

_MOST_NAMED = 10
"""Maximum number of changed files that a message names."""


class _FileRecord(msgspec.Struct, frozen=True):
    path: str
    characters: int
    sha256: str
    records: int | None = None


class _SkippedRecord(msgspec.Struct, frozen=True):
    path: str
    invalid: int
    empty: int
    reasons: list[str]


class _LeftOutRecord(msgspec.Struct, frozen=True):
    path: str
    reason: str
    failed: bool


class _Record(msgspec.Struct, frozen=True):
    """The content of the file; paths are absolute."""

    files: list[_FileRecord]
    left_out: list[_LeftOutRecord]
    skipped: list[_SkippedRecord] = []


class FilesRead(Protocol):
    """A text, or several, with the files that it consists of."""

    @property
    def files(self) -> tuple[TextFile, ...]:
        """Its files, in order."""

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files and whole directories that are not part of it."""

    @property
    def skipped(self) -> tuple[SkippedRecords, ...]:
        """Records that are not part of it."""


def write_sources(directory: Path, text: FilesRead) -> Path:
    """Write the record of a text to a directory and return its path; raises OSError."""
    record = _Record(
        [_FileRecord(absolute_text(file.path), file.characters, file.sha256, file.records) for file in text.files],
        [_LeftOutRecord(absolute_text(path), _utf8(reason), failed) for path, reason, failed in text.left_out],
        [
            _SkippedRecord(absolute_text(found.path), found.invalid, found.empty, [*map(_utf8, found.reasons)])
            for found in text.skipped
        ],
    )
    path = directory / SOURCES_FILE
    atomic_write(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    return path


def text_changes(directory: Path, text: FilesRead) -> str | None:
    """Return how a text differs from the record in a directory, file by file; None without a record."""
    record = _read(directory)
    if record is None:
        return None
    before = {file.path: file.sha256 for file in record.files}
    now = {absolute_text(file.path): file.sha256 for file in text.files}
    changes = [f"{path} was removed" for path in before if path not in now]
    changes += [f"{path} was added" for path in now if path not in before]
    changes += [f"{path} was changed" for path in before if now.get(path, before[path]) != before[path]]
    more = len(changes) - _MOST_NAMED
    return ", ".join(changes[:_MOST_NAMED] + [f"and {more:,} more"] * (more > 0)) or "its files have another order"


def recorded_outputs(directory: Path) -> list[Path]:
    """Return the files to which the output of the run was written before, which stay out of its text."""
    record = _read(directory)
    return [text_path(found.path) for found in record.left_out if found.reason == OUTPUT] if record else []


def _read(directory: Path) -> _Record | None:
    try:
        return msgspec.json.decode((directory / SOURCES_FILE).read_bytes(), type=_Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # a run of a version without records
        return None


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
