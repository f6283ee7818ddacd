"""Safetensors files of float32 tensors.

The safetensors library reads them and validates the header before any of it is used. Its writer is not used: older
versions copy every tensor, newer ones create files that only their owner can read, and a full disk is reported as text.
The format is a length, a JSON header and the data, so `write_tensors` streams each tensor from its own memory.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from threadloom.stages.config import InputError
from threadloom.stages.models import Shape
from threadloom.stages.storage.hashed_file import FileDigest, HashedFile

_WRITTEN = {np.dtype("<f4"): "F32"}
_READ = {"F32", "F16", "F64"}


class CheckpointError(InputError):
    """A file of a checkpoint or of a model that cannot be read or written; `path` is the file or its directory."""

    def __init__(
        self, path: Path, *, expected: str, got: str, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(str(path), expected, got, cause, hint)
        self.path = path


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> FileDigest:
    """Write C-contiguous float32 arrays durably to a new safetensors file, without copying them.

    Raises `ValueError` for other arrays, before the file is created, and `OSError`.
    """
    header = _header(tensors, metadata)
    with HashedFile(path) as file:
        file.write(header)
        for tensor in tensors.values():
            file.write(tensor.reshape(-1).view(np.uint8).data)
        return file.finish()


def _header(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the header length (8 bytes, little-endian) and the JSON header, which precede the data."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _WRITTEN or not tensor.flags.c_contiguous:
            raise ValueError(
                f"tensor {name!r}: expected a C-contiguous float32 array, got {tensor.dtype} "
                f"with strides {tensor.strides} and shape {tensor.shape}"
            )
        entries[name] = {
            "dtype": _WRITTEN[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text


class TensorFile:
    """A safetensors file, open for reading; created by `open_tensors`."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self.shapes: dict[str, Shape] = {}
        for name in handle.keys():  # noqa: SIM118, the handle is not a mapping
            self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def require(self, expected: Mapping[str, Shape], *, ignored: frozenset[str] = frozenset(), cause: str) -> None:
        """Raise `CheckpointError` unless the file has exactly the tensors `expected`; those in `ignored` may be there.

        `cause` is the likely cause that the error names.
        """
        hint = "use the file with the model that it was saved from, or another file"
        missing = [name for name in expected if name not in self.shapes]
        unknown = [name for name in self.shapes if name not in expected and name not in ignored]
        if missing or unknown:
            if missing and unknown:
                got = f"{_first_names(unknown)} instead of {_first_names(missing)}"
            else:
                got = f"{_first_names(missing)} missing" if missing else f"{_first_names(unknown)} in addition to them"
            raise CheckpointError(
                self.path, expected=f"the {len(expected)} tensors of the model", got=got, cause=cause, hint=hint
            )
        for name, shape in expected.items():
            if self.shapes[name] != tuple(shape):
                raise CheckpointError(
                    self.path,
                    expected=f"{name} of shape {tuple(shape)}",
                    got=f"shape {self.shapes[name]}",
                    cause=cause,
                    hint=hint,
                )

    def read(self, name: str, out: NDArray[np.float32]) -> None:
        """Copy a tensor into `out`, a float32 array of the same shape; float32 values are copied bit for bit.

        Raises `CheckpointError` for a dtype other than float16, float32 and float64, `ValueError` for another shape.
        """
        dtype = self._handle.get_slice(name).get_dtype()
        if dtype not in _READ:
            raise CheckpointError(
                self.path,
                expected=f"{name} as one of {', '.join(sorted(_READ))}",
                got=str(dtype),
                cause="the model was saved in a compact number format",
                hint="save it as float32, with `model.float().save_pretrained(directory)`",
            )
        if self.shapes[name] != out.shape:
            raise ValueError(f"{self.path}: {name} has shape {self.shapes[name]}, the output array {out.shape}")
        out[...] = self._handle.get_tensor(name)


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file; raises `CheckpointError` for a missing, truncated or malformed one."""
    try:
        handle = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            path,
            expected="a safetensors file",
            got=f"{type(error).__name__}: {error}",
            cause="the file is missing, incomplete or of another format",
            hint="restore it from a copy, or save the model again",
        ) from error
    with handle:
        yield TensorFile(path, handle)


def _first_names(names: list[str], limit: int = 4) -> str:
    """Return the first `limit` names and the number of the others as text."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
