"""Writing safetensors files, in float32 or rounded to 16 bits.

The writer of the safetensors library is not used: older versions copy every tensor, newer ones create files that only
their owner can read, and a full disk is reported as text. The format is a length, a JSON header and the data, so
`write_tensors` streams each tensor from its own memory, block by block where it is rounded or not contiguous.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import InputError
from threadloom.stages.storage.hashed_file import FileDigest, HashedFile
from threadloom.stages.storage.number_formats import StoredFormat

BLOCK = 1 << 20
"""Elements of a tensor that are copied at a time, at least one row."""


class CheckpointError(InputError):
    """A file of a checkpoint or of a model that cannot be read or written; `path` is the file or its directory."""

    def __init__(
        self, path: Path, *, expected: str, got: str, cause: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(str(path), expected, got, cause, hint)
        self.path = path


def write_tensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    stored: StoredFormat = StoredFormat.FLOAT32,
    rows: Mapping[str, NDArray[np.int32]] | None = None,
) -> FileDigest:
    """Write float32 arrays durably to a new safetensors file, rounded to `stored`; they need not be contiguous.

    `rows` are the rows of some of the arrays in the order in which they are written; by default all in theirs.
    Raises `ValueError` for other arrays, before the file is created, and `OSError`.
    """
    header = _header(tensors, metadata, stored)
    with HashedFile(path) as file:
        file.write(header)
        for name, tensor in tensors.items():
            for block in row_blocks(tensor, (rows or {}).get(name)):
                file.write(np.ascontiguousarray(stored.rounded(block)).reshape(-1).view(np.uint8).data)
        return file.finish()


def row_blocks(tensor: NDArray[np.float32], order: NDArray[np.int32] | None = None) -> Iterator[NDArray[np.float32]]:
    """Yield consecutive rows of a tensor, of about `BLOCK` elements: views, or copies in another order."""
    if not tensor.ndim:
        yield tensor
        return
    rows = max(1, BLOCK * tensor.shape[0] // max(1, tensor.size))
    for first in range(0, tensor.shape[0], rows):
        yield tensor[first : first + rows] if order is None else tensor[order[first : first + rows]]


def _header(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], stored: StoredFormat) -> bytes:
    """Return the header length (8 bytes, little-endian) and the JSON header, which precede the data."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype != np.dtype("<f4"):
            raise ValueError(f"tensor {name!r}: expected a float32 array, got {tensor.dtype}")
        entries[name] = {
            "dtype": stored.value,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size * stored.itemsize],
        }
        end += tensor.size * stored.itemsize
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text
