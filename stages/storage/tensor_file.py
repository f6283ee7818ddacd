"""Writing safetensors files of float32 tensors.

The writer of the safetensors library is not used: older versions copy every tensor, newer ones create files that only
their owner can read, and a full disk is reported as text. The format is a length, a JSON header and the data, so
`write_tensors` streams each tensor from its own memory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import InputError
from threadloom.stages.storage.hashed_file import FileDigest, HashedFile

_WRITTEN = {np.dtype("<f4"): "F32"}


class CheckpointError(InputError):
    """A file of a checkpoint or of a model that cannot be read or written; `path` is the file or its directory."""

    def __init__(
        self, path: Path, *, expected: str, got: str, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(str(path), expected, got, cause, hint)
        self.path = path


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> FileDigest:
    """Write float32 arrays durably to a new safetensors file; one at a time is copied, if it is not contiguous.

    Raises `ValueError` for other arrays, before the file is created, and `OSError`.
    """
    header = _header(tensors, metadata)
    with HashedFile(path) as file:
        file.write(header)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        return file.finish()


def _header(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the header length (8 bytes, little-endian) and the JSON header, which precede the data."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _WRITTEN:
            raise ValueError(f"tensor {name!r}: expected a float32 array, got {tensor.dtype}")
        entries[name] = {
            "dtype": _WRITTEN[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text
