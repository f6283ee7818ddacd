"""New files that are hashed while they are written and synced at the end.

`FileIO` is used directly, so that every failure is an `OSError` with its number. A file that exists is never opened for
writing (`FileExistsError`). Hashing and writing release the GIL.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

from threadloom.stages.storage.durable_io import fsync_directory

CHUNK = 4 << 20
"""Bytes hashed and written at a time."""


@dataclass(frozen=True)
class FileDigest:
    """SHA-256 (hexadecimal) and size in bytes of a file's content."""

    sha256: str
    size: int


class HashedFile:
    """A new file, open for writing; call `finish` after the last `write`."""

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "x")
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._digest.update(chunk)
            self._size += len(chunk)
            while chunk:  # the operating system may write only a part of it
                chunk = chunk[self._file.write(chunk) :]

    def finish(self) -> FileDigest:
        """Sync the file to the disk and return its digest."""
        os.fsync(self._file.fileno())
        return FileDigest(self._digest.hexdigest(), self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


def write_bytes(path: Path, data: bytes) -> FileDigest:
    """Write a new file durably."""
    with HashedFile(path) as file:
        file.write(data)
        return file.finish()


def copy_file(source: Path, target: Path) -> FileDigest:
    """Copy a file durably to a new one."""
    with source.open("rb") as reader, HashedFile(target) as file:
        while data := reader.read(CHUNK):
            file.write(data)
        return file.finish()


def copy_files(files: Mapping[str, Path], folder: Path) -> dict[str, FileDigest]:
    """Copy files durably to new names in a folder, which may begin with that of a new sub-folder; returns the digests.

    The entries of sub-folders are synced, those of the folder are not.
    """
    folders = {(folder / name).parent for name in files} - {folder}
    for path in folders:
        path.mkdir()
    digests = {name: copy_file(path, folder / name) for name, path in files.items()}
    for path in folders:
        fsync_directory(path)
    return digests


def digest_file(path: Path) -> FileDigest:
    """Read a file and return its digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileDigest(digest.hexdigest(), file.tell())
