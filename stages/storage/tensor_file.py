"""Files of tensors (safetensors) and what saving and reading them has in common: checksums, syncing, errors.

Reading is the safetensors library's, which validates a header before anything is taken from it. Writing is done here,
for its format is a length, a JSON header and the bytes: the library's own writer copies every tensor in its older
versions, leaves files that only their owner can read in its newer ones, and reports a full disk as a text. Here a
tensor is streamed from where it lies, hashed in the same pass, with the interpreter's lock released, and every failure
is an `OSError` with its number.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from threadloom.stages.config import InputError
from threadloom.stages.storage.run_directory import free_bytes

Shape = tuple[int, ...]

CHUNK = 4 << 20
"""Bytes that are hashed and written at a time."""

_WRITTEN = {np.dtype("<f4"): "F32"}
_READ = {"F32", "F16", "F64"}


class CheckpointError(InputError):
    """A file of a checkpoint or of a model cannot be written or read; the text says which, why, and what to do."""

    def __init__(
        self, path: Path, *, expected: str, got: str, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(str(path), expected, got, cause, hint)
        self.path = path


@dataclass(frozen=True)
class FileRecord:
    """What a file holds, as far as another reading of it can be compared."""

    sha256: str
    size: int


class HashedFile:
    """A new file that is hashed while it is written; `finish` makes it durable."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._digest.update(chunk)
            self._size += len(chunk)
            while chunk:  # the system may take a part only
                chunk = chunk[self._file.write(chunk) :]

    def finish(self) -> FileRecord:
        """Wait until the file is on the disk."""
        os.fsync(self._file.fileno())
        return FileRecord(self._digest.hexdigest(), self._size)


def write_bytes(path: Path, data: bytes) -> FileRecord:
    """Write a new file durably; raises `OSError`, `FileExistsError` among them."""
    with FileIO(path, "x") as raw:
        file = HashedFile(raw)
        file.write(data)
        return file.finish()


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> FileRecord:
    """Write C-contiguous float32 arrays durably as a new safetensors file, without a copy of any of them.

    Raises `ValueError` for an array of another kind, before the file is made, and `OSError`.
    """
    header = _header(tensors, metadata)
    with FileIO(path, "x") as raw:
        file = HashedFile(raw)
        file.write(header)
        for tensor in tensors.values():
            file.write(tensor.reshape(-1).view(np.uint8).data)
        return file.finish()


def _header(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the length (8 bytes, little-endian) and the JSON text that precede the tensors' bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _WRITTEN or not tensor.flags.c_contiguous:
            raise ValueError(
                f"tensor {name!r} needs to be C-contiguous float32 to be saved, not {tensor.dtype} "
                f"with strides {tensor.strides} and shape {tensor.shape}"
            )
        entries[name] = {
            "dtype": _WRITTEN[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin on a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def copy_file(source: Path, target: Path) -> FileRecord:
    """Copy a file durably to a new one, hashed on the way; raises `OSError`."""
    with source.open("rb") as reader, FileIO(target, "x") as raw:
        file = HashedFile(raw)
        while data := reader.read(CHUNK):
            file.write(data)
        return file.finish()


def record_file(path: Path) -> FileRecord:
    """Read a file whole and return what it holds; raises `OSError`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(digest.hexdigest(), file.tell())


class TensorFile:
    """A safetensors file, open for reading; made by `open_tensors`."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self.shapes: dict[str, Shape] = {}
        for name in handle.keys():  # noqa: SIM118, a handle of safetensors is no mapping
            self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def require(self, needed: Mapping[str, Shape], *, ignored: frozenset[str] = frozenset(), cause: str) -> None:
        """Raise `CheckpointError` unless the file holds just the tensors `needed`, of these shapes, and `ignored`."""
        remedy = "use the file with the model that it was saved from, or another file"
        missing = [name for name in needed if name not in self.shapes]
        unknown = [name for name in self.shapes if name not in needed and name not in ignored]
        if missing or unknown:
            found = f"{_listed(missing)} missing" if missing else f"{_listed(unknown)} beside them"
            raise CheckpointError(
                self.path, expected=f"the {len(needed)} tensors of the model", got=found, cause=cause, hint=remedy
            )
        for name, shape in needed.items():
            if self.shapes[name] != tuple(shape):
                raise CheckpointError(
                    self.path,
                    expected=f"{name} of shape {tuple(shape)}",
                    got=f"shape {self.shapes[name]}",
                    cause=cause,
                    hint=remedy,
                )

    def read(self, name: str, out: NDArray[np.float32]) -> None:
        """Copy a tensor into `out`, float32 of the same shape; the bits of a float32 one stay what they are."""
        kind = self._handle.get_slice(name).get_dtype()
        if kind not in _READ:
            raise CheckpointError(
                self.path,
                expected=f"{name} as one of {', '.join(sorted(_READ))}",
                got=str(kind),
                cause="the model was saved in a compact form",
                hint="save it as float32, with `model.float().save_pretrained(folder)`",
            )
        if self.shapes[name] != out.shape:
            raise ValueError(f"{self.path}: {name} has shape {self.shapes[name]}, its place has {out.shape}")
        out[...] = self._handle.get_tensor(name)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file; a missing, truncated or malformed one raises `CheckpointError`."""
    try:
        handle = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            path,
            expected="a safetensors file",
            got=f"{type(error).__name__}: {error}",
            cause="the file is missing, incomplete or of another kind",
            hint="restore it from a copy, or save the model again",
        ) from error
    with handle:
        yield TensorFile(path, handle)


def _listed(names: list[str], most: int = 4) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explain_fault(error: OSError, folder: Path, needed: int) -> CheckpointError:
    """Put a failure to write `needed` bytes in `folder` into words; call it when what was half written is gone."""
    path = Path(os.fsdecode(error.filename)) if error.filename else folder
    found = error.strerror or str(error)
    intact = "earlier checkpoints are untouched"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            folder,
            expected=f"{needed:,} bytes on the disk",
            got=f"{free_bytes(folder):,} bytes free ({found})",
            cause="the disk, or the quota on it, is full",
            hint=f"free space or keep fewer checkpoints, then resume; {intact}",
        )
    if error.errno == errno.EFBIG:
        cause, remedy = "a limit on the size of files", "raise it (`ulimit -f unlimited`)"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cause, remedy = "the folder belongs to another user, or is mounted read-only", "choose another output folder"
    else:
        cause, remedy = "the disk failed or went away", "look at the system's log, and choose another output folder"
    needed_text = f"to write {needed:,} bytes there"
    return CheckpointError(path, expected=needed_text, got=found, cause=cause, hint=f"{remedy}; {intact}")


def require_space(folder: Path, needed: int) -> None:
    """Raise `OSError` with ENOSPC, before anything is written, if the disk has less than `needed` bytes free."""
    if free_bytes(folder) < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
