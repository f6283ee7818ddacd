"""Reading safetensors files, one or a set of shards with an index, as float32.

The safetensors library validates the header before any of it is used. Tensors are then read from the file in blocks of
rows, not through the library's memory map: the memory taken is that of one block, whatever the size of the file, and
bfloat16, which NumPy does not have, needs no further library.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from threadloom.stages.models import Shape
from threadloom.stages.storage.json_text import plain_json
from threadloom.stages.storage.tensor_file import CheckpointError

BLOCK = 4 << 20
"""Bytes of a tensor that are read and converted at a time, at least one row."""

_READ: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


class _Entry(msgspec.Struct):
    """A tensor in the header of a file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    """The content of `model.safetensors.index.json`."""

    weight_map: dict[str, str]
    """Name of a tensor → name of the file that contains it."""


@dataclass(frozen=True)
class _StoredTensor:
    """The place of a tensor."""

    path: Path
    file: FileIO
    dtype: str
    shape: Shape
    offset: int
    """First byte of the data, from the start of the file."""


class TensorFile:
    """A safetensors file, or all files of an index, open for reading; created by `open_tensors`."""

    def __init__(self, path: Path, tensors: Mapping[str, _StoredTensor]) -> None:
        self.path = path
        self._tensors = tensors
        self.shapes: dict[str, Shape] = {name: tensor.shape for name, tensor in tensors.items()}

    def require(
        self,
        expected: Mapping[str, Shape],
        *,
        ignored: frozenset[str] = frozenset(),
        cause: str,
        hint: str = "use the file with the model that it was saved from, or another file",
    ) -> None:
        """Raise `CheckpointError` unless the file has exactly the tensors `expected`; those in `ignored` may be there.

        `cause` is the likely cause that the error names, `hint` the remedy.
        """
        missing = [name for name in expected if name not in self.shapes]
        unknown = [name for name in self.shapes if name not in expected and name not in ignored]
        if missing or unknown:
            if missing and unknown:
                got = f"{first_names(unknown)} instead of {first_names(missing)}"
            else:
                got = f"{first_names(missing)} missing" if missing else f"{first_names(unknown)} in addition to them"
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
        for name in expected:
            self._require_dtype(name)

    def read(self, name: str, out: NDArray[np.float32]) -> None:
        """Copy a tensor, or its leading rows, into `out`, a float32 array; float32 values are copied bit for bit.

        `out` has the shape of the tensor, or fewer rows, and need not be contiguous. Raises `CheckpointError` for a
        dtype other than float16, bfloat16, float32 and float64 and for a truncated file, `ValueError` for another
        shape.
        """
        self._require_dtype(name)
        tensor = self._tensors[name]
        if not out.ndim or tensor.shape[1:] != out.shape[1:] or tensor.shape[0] < out.shape[0]:
            raise ValueError(f"{tensor.path}: {name} has shape {tensor.shape}, the output array {out.shape}")
        dtype, width = _READ[tensor.dtype], prod(out.shape[1:])
        rows = max(1, BLOCK // max(1, dtype.itemsize * width))
        tensor.file.seek(tensor.offset)
        for first in range(0, out.shape[0], rows):
            block = out[first : first + rows]
            values = np.empty(block.size, dtype)
            _read_exactly(tensor, name, values)
            if tensor.dtype == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            block[...] = values.reshape(block.shape)

    def _require_dtype(self, name: str) -> None:
        tensor = self._tensors[name]
        if tensor.dtype not in _READ:
            raise CheckpointError(
                tensor.path,
                expected=f"{name} as one of {', '.join(sorted(_READ))}",
                got=tensor.dtype,
                cause="the model was quantised, or saved in a compact number format",
                hint="save it as float32, with `model.float().save_pretrained(directory)`",
            )


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file; raises `CheckpointError` for a missing, truncated or malformed one."""
    with ExitStack() as files:
        yield TensorFile(path, _open_file(path, files))


@contextmanager
def open_sharded_tensors(index: Path) -> Iterator[TensorFile]:
    """Open the files that an index lists, which are in its directory.

    Raises `CheckpointError` if the index names a file elsewhere, if a file is missing or malformed, or if it lacks a
    tensor that the index assigns to it.
    """
    shards = _read_index(index)
    tensors: dict[str, _StoredTensor] = {}
    with ExitStack() as files:
        for shard in sorted(set(shards.values())):
            tensors |= {
                name: tensor
                for name, tensor in _open_file(index.with_name(shard), files).items()
                if shards.get(name) == shard
            }
        if missing := sorted(shards.keys() - tensors.keys()):
            raise CheckpointError(
                index.with_name(shards[missing[0]]),
                expected=f"the tensors that {index.name} lists",
                got=f"no {first_names(missing)}",
                cause="the files are of different models, or one was replaced",
                hint="restore the folder from a copy, or save the model again",
            )
        yield TensorFile(index, tensors)


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index lists; raises `CheckpointError` for one that is not an index."""
    return sorted(set(_read_index(index).values()))


def _read_index(index: Path) -> dict[str, str]:
    """Return name of a tensor → name of a file in the directory of the index."""
    try:
        shards = msgspec.json.decode(plain_json(index.read_bytes()), type=_Index).weight_map
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(
            index,
            expected="the index of a sharded model as JSON, with `weight_map`",
            got=f"{type(error).__name__}: {error}",
            hint="restore the folder from a copy, or save the model again",
        ) from error
    for shard in shards.values():
        if shard in ("", ".", "..") or any(character in shard for character in "/\\\0:"):
            raise CheckpointError(
                index,
                expected="names of files next to the index",
                got=repr(shard),
                cause="the file was edited, and would be read from elsewhere",
                hint="use the index that was saved with the model",
            )
    return shards


def _open_file(path: Path, files: ExitStack) -> dict[str, _StoredTensor]:
    """Return name → place of each tensor of a file, which `files` closes."""
    try:
        file = files.enter_context(FileIO(path))
        with safe_open(path, framework="np"):  # validates sizes, offsets and the length of the file
            pass
        length = int.from_bytes(file.read(8), "little")
        header = msgspec.json.decode(file.read(length), type=dict[str, Any])
        entries = {name: msgspec.convert(header[name], _Entry) for name in header if name != "__metadata__"}
    except (SafetensorError, OSError, msgspec.DecodeError) as error:
        raise CheckpointError(
            path,
            expected="a safetensors file",
            got=f"{type(error).__name__}: {error}",
            cause="the file is missing, incomplete or of another format",
            hint="restore it from a copy, or save the model again",
        ) from error
    return {
        name: _StoredTensor(path, file, entry.dtype, entry.shape, 8 + length + entry.data_offsets[0])
        for name, entry in entries.items()
    }


def _read_exactly(tensor: _StoredTensor, name: str, values: NDArray[Any]) -> None:
    """Fill an array from the current position of the file."""
    left = values.data.cast("B")
    while left:
        count = tensor.file.readinto(left)
        if not count:
            raise CheckpointError(
                tensor.path,
                expected=f"{values.nbytes:,} bytes of {name}",
                got="the end of the file",
                cause="the file was truncated while it was read",
                hint="restore it from a copy, or save the model again",
            )
        left = left[count:]


def first_names(names: list[str], limit: int = 4) -> str:
    """Return the first `limit` names and the number of the others as text."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
