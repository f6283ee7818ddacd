"""Durable file operations: atomic writes, syncing of directories, locks between processes, free space.

A file written by `atomic_file` or `atomic_write` is either the previous file or the complete new one, even after
SIGKILL or a power cut.
Every write that the operating system refuses for lack of space is reported as `DiskFullError`.
"""

import contextlib
import errno
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from loguru import logger

try:
    import fcntl
except ImportError:  # Windows has no flock: `file_lock` then excludes nobody
    fcntl = None  # type: ignore[assignment]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL_SECONDS = 0.02


class DiskFullError(OSError):
    """A write exceeds the free space of the disk, a quota or the limit on file sizes. Existing files are unchanged."""

    def __str__(self) -> str:
        """Return the explanation without the error number."""
        return str(self.strerror)


def disk_full_error(path: Path, needed: int | None, code: int = errno.ENOSPC) -> DiskFullError:
    """Return the error of a write of `needed` bytes (None: unknown) to `path` that failed with the number `code`."""
    expected = "space for the file" if needed is None else f"space for {needed:,} bytes"
    if code == errno.EFBIG:
        got, hint = "a lower limit on file sizes", "raise the limit with `ulimit -f unlimited`"
    else:
        got = f"{free_bytes(path):,} bytes free"
        hint = "free some space or choose an output directory on another disk"
    message = f"{path}: expected {expected}, got {got} ({os.strerror(code)}). Hint: {hint}; existing files are kept"
    return DiskFullError(code, message)


@contextlib.contextmanager
def explain_disk_full(path: Path, needed: int | None = None) -> Iterator[None]:
    """Raise `DiskFullError` for `path` in place of any error in the block that reports a full disk."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise disk_full_error(path, needed, error.errno) from error


def free_bytes(path: Path) -> int:
    """Return the free space in bytes at `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_free_space(path: Path, needed: int) -> None:
    """Raise `DiskFullError` unless `needed` bytes are free at `path`; call it before a long write."""
    if free_bytes(path) < needed:
        raise disk_full_error(path, needed)


@contextlib.contextmanager
def atomic_file(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """Write a file in the block so that `path` holds either its previous content or all of the new one.

    The content is written to a temporary file in the same directory, which at the end of the block is synced and
    renamed to `path`, and the directory is synced. On any error, with `DiskFullError` for a full disk, the temporary
    file is removed and the previous file is unchanged. `needed` is the size in bytes, if it is known.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with explain_disk_full(path, needed):
            with temporary.open("w+b") as file:  # some contents are read once more before they are complete
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file as `atomic_file` does."""
    with atomic_file(path, len(content)) as file:
        file.write(content)


def fsync_directory(directory: Path) -> None:
    """Sync the entries of a directory (new files, renames) to the disk; the content of files is synced separately."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows cannot open directories and does not need this step
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(directory: Path) -> None:
    """Create a directory and its missing parents durably."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


@contextlib.contextmanager
def file_lock(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if necessary, for the duration of the block.

    Waits up to `timeout` seconds and then raises `BlockingIOError` if another process still holds the lock; raises
    `OSError` if the file cannot be opened. The operating system releases the lock when the process ends, however it
    ends. On file systems without locks, as some network file systems are, the block runs without one.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        _wait_for_lock(handle, path, time.monotonic() + timeout)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def directory_lock(directory: Path, waiting: str) -> Iterator[None]:
    """Hold an exclusive lock on an existing directory for the duration of the block, without a file in it.

    While another process holds it, this one waits, after it has logged `waiting`. The operating system releases the
    lock when the process ends. On file systems without locks, and on Windows, the block runs without one.
    """
    try:
        handle = os.open(directory, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except PermissionError:  # Windows cannot open directories
        yield
        return
    try:
        try:
            _wait_for_lock(handle, directory, time.monotonic())
        except BlockingIOError:
            logger.info("{}", waiting)
            _wait_for_lock(handle, directory, math.inf)
        yield
    finally:
        os.close(handle)


def _wait_for_lock(handle: int, path: Path, deadline: float) -> None:
    while fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            logger.debug("{}: locks are not supported: {}", path, error)
            return
        else:
            return
