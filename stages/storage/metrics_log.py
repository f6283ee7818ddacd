"""Metrics of a run as JSON lines.

An appended line survives SIGKILL, since it is not buffered in the process, and a power cut once `MetricsLog.sync` has
returned.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
from loguru import logger

from threadloom.stages.storage.durable_io import atomic_write, explain_disk_full


class MetricsLog:
    """Append-only file with one JSON line per update and one per evaluation. Used by one thread at a time."""

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        """Open the log of a run that has done `resume_at` updates; drop lines of later steps and an incomplete one."""
        self.path = path
        if path.is_file():
            _truncate_after(path, resume_at)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o644)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one complete line, or none of it (`DiskFullError`). NaN and infinity are written as null."""
        line = msgspec.json.encode(record, enc_hook=_to_python) + b"\n"
        size = os.fstat(self._handle).st_size
        rest = line
        try:
            with explain_disk_full(self.path, len(line)):
                while rest:  # on a nearly full disk a write may be partial
                    rest = rest[os.write(self._handle, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, size)
            raise

    def sync(self) -> None:
        """Sync all lines to the disk; called for every checkpoint."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Sync and close the file; may be called more than once."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                self.sync()
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file in order; it may be open for writing. An incomplete last line is ignored."""
    return [record for _, record in _records(path)]


def _truncate_after(path: Path, step: int) -> None:
    """Rewrite the file atomically with the complete lines up to `step`, unless it has no others."""
    kept = b"".join(line for line, record in _records(path) if record.get("step", 0) <= step)
    if kept != path.read_bytes():
        atomic_write(path, kept)


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            record = None
        if record is not None and line.endswith(b"\n"):
            yield line, record
        elif number < len(lines):
            logger.warning("{}: ignored line {}, which is damaged", path, number)


def _to_python(value: object) -> Any:
    """Convert a NumPy scalar to a Python number."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a metric must be a number, a string or a list of them, not {type(value).__name__}")
