"""Matrices of small integers times a step, compressed: rounded embeddings in a fraction of the space of float32.

The file is one line of JSON and a zlib stream (deflate) of the integers, row by row, little-endian. The matrix is
``(step * integers)`` rounded to float32.
"""

import hashlib
import zlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.stages.storage.tensor_file import CheckpointError

INTEGERS_FILE = "wte.integers"
"""Name of the file of a token embedding, beside the model in float32."""
_HEADER_BYTES = 4096
_TYPES: dict[str, np.dtype[np.signedinteger]] = {
    "int8": np.dtype("<i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
}


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    """The first line."""

    format: Literal["threadloom-integers-1"]
    type: Literal["int8", "int16", "int32"]
    shape: tuple[int, int]
    step: float
    sha256: str


def encode_integers(integers: NDArray[np.signedinteger], step: float) -> bytes:
    """Return the content of a file of integers (rows, columns) in the smallest type that holds them."""
    largest = max(int(integers.max(initial=0)), -int(integers.min(initial=0)))
    name = next(name for name, kind in _TYPES.items() if largest <= np.iinfo(kind).max)
    raw = np.ascontiguousarray(integers, _TYPES[name]).tobytes()
    rows, columns = integers.shape
    header = _Header("threadloom-integers-1", name, (rows, columns), step, hashlib.sha256(raw).hexdigest())  # type: ignore[arg-type]
    return msgspec.json.encode(header) + b"\n" + zlib.compress(raw, 9)


def integers_times(integers: NDArray[np.signedinteger], step: float) -> NDArray[np.float32]:
    """Return the matrix of float32 that integers and a step stand for."""
    return (integers.astype(np.float64) * step).astype(np.float32)


def power_of_two_grid(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int64], float] | None:
    """Return the integers and the largest power of two of which all elements are multiples, or None.

    None: an element is not finite or has more than 15 bits, as nearly all numbers that were not rounded to a grid.
    """
    if not np.isfinite(matrix).all():
        return None
    mantissas, exponents = np.frexp(matrix)
    whole = np.abs(np.ldexp(mantissas, 24).astype(np.int64))  # 24 bits
    lowest = whole & -whole  # the last bit that is set; 0 for 0
    ends = np.where(lowest > 0, np.log2(np.maximum(lowest, 1)).astype(np.int64) + exponents - 24, 1000)
    step = float(np.ldexp(1.0, int(ends.min()))) if lowest.any() else 1.0
    integers = matrix.astype(np.float64) / step
    if np.abs(integers).max(initial=0.0) >= 1 << 15:
        return None
    return integers.astype(np.int64), step


def read_integers(path: Path) -> tuple[NDArray[np.signedinteger], float]:
    """Return the integers (rows, columns) of a file, and the step. Raises `CheckpointError`."""
    content = path.read_bytes()
    line, end, _ = content[:_HEADER_BYTES].partition(b"\n")
    if not end:
        raise _damaged(path, "no line of JSON")
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    rows, columns = header.shape
    kind = _TYPES[header.type]
    size = rows * columns * kind.itemsize
    if rows < 0 or columns < 0 or not 0.0 < header.step < np.inf or size > 1032 * len(content):
        raise _damaged(path, f"a shape of {rows} x {columns} and a step of {header.step}")  # deflate: at most 1032-fold
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(content[len(line) + 1 :], size + 1)
    except zlib.error as error:
        raise _damaged(path, str(error)) from error
    if len(raw) != size or not stream.eof or hashlib.sha256(raw).hexdigest() != header.sha256:
        raise _damaged(path, "integers that do not match their checksum")
    return np.frombuffer(raw, kind).reshape(rows, columns), header.step


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        path,
        expected="a line of JSON and compressed integers, as threadloom writes them",
        got=got,
        cause="the file is damaged or incomplete",
        hint="copy it again, or use the model.safetensors beside it, which has the same numbers",
    )
