"""Token files: ids in a .npy file, mapped into memory read-only, checked before anything reads them.

Guarantees: `TokenFile.open` refuses a file whose header, size or type is not right; `TokenFile.read` refuses a window
with an id outside [0, vocab_size), looking at the caller's copy, the very values that a kernel will use as indices. A
file must not be changed while it is open: shortening a mapped file ends the process.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from threadloom.stages.config import InputError

TOKEN_TYPES: tuple[np.dtype[Any], ...] = tuple(np.dtype(kind) for kind in (np.uint8, np.uint16, np.int32, np.uint32))
"""The element types that a token file may have."""


class DataError(InputError):
    """Token data that cannot be used or written; `subject` is the file or directory."""


def token_type(vocab_size: int) -> np.dtype[Any]:
    """Return the element type that token files are written with: uint16 where the ids fit, or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenFile:
    """A sequence of token ids of which windows of context + 1 ids are read. Any number of threads may read at once."""

    def __init__(self, ids: NDArray[Any], vocab_size: int, context: int, path: Path) -> None:
        """Wrap ids (N,) of one of TOKEN_TYPES; `path` names them in errors. DataError where N < context + 1."""
        if ids.dtype not in TOKEN_TYPES or ids.ndim != 1:
            raise ValueError(f"ids need one dimension and a type of {_names()}, got {ids.dtype} {ids.shape}")
        if len(ids) < context + 1:
            raise DataError(
                str(path),
                expected=f"at least {context + 1:,} tokens: a context of {context:,} and the token after it",
                got=f"{len(ids):,}",
                cause="the text is too short for the context, or the split leaves it too little",
                hint="give more text, or set a smaller model.context or another data.train_fraction",
            )
        self.ids, self.vocab_size, self.context, self.path = ids, vocab_size, context, path

    @classmethod
    def open(cls, path: Path, vocab_size: int, context: int) -> "TokenFile":
        """Map a .npy file of ids. DataError where it is missing, no .npy, of another type or shape, or cut short."""
        try:
            with path.open("rb") as file:
                shape, fortran, dtype = _header(file)
                start = file.tell()
        except (OSError, ValueError, EOFError) as error:
            missing = isinstance(error, OSError)
            raise DataError(
                str(path),
                expected="a NumPy file (.npy) of token ids",
                got=(error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error),
                cause="the path is wrong or not permitted" if missing else "a damaged file, or one of another kind",
                hint="check the path" if missing else "delete it, so that it is made anew from the text",
            ) from error
        if len(shape) != 1 or fortran or dtype not in TOKEN_TYPES:
            raise DataError(
                str(path),
                expected=f"one dimension of {_names()}",
                got=f"shape {shape} of {dtype}",
                cause="the file was not written as token ids",
                hint="delete it, so that it is made anew from the text",
            )
        needed, found = start + shape[0] * dtype.itemsize, path.stat().st_size
        if needed != found:
            raise DataError(
                str(path),
                expected=f"{needed:,} bytes for the {shape[0]:,} tokens that its header promises",
                got=f"{found:,} bytes",
                cause="a full disk or a broken copy cut it short" if found < needed else "something was appended",
                hint="delete it, so that it is made anew from the text, or copy it again",
            )
        ids = np.memmap(path, dtype, "r", start, shape) if shape[0] else np.zeros(0, dtype)
        return cls(np.asarray(ids), vocab_size, context, path)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def starts(self) -> int:
        """Number of windows: they start at 0, 1, ... up to this."""
        return len(self.ids) - self.context

    def read(self, start: int, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Write the window that begins at `start` into the caller's `ids` (T,) and `targets` (T,), T = context.

        DataError where one of its ids is outside [0, vocab_size); the buffers then hold no window.
        """
        window = self.ids[start : start + self.context + 1]
        ids[:] = window[:-1]
        targets[:-1] = ids[1:]
        targets[-1] = window[-1]
        if ids.min() < 0 or ids.max() >= self.vocab_size or not 0 <= targets[-1] < self.vocab_size:
            copied = np.append(ids, targets[-1])
            at = int(np.argmax((copied < 0) | (copied >= self.vocab_size)))
            raise DataError(
                str(self.path),
                expected=f"ids from 0 to {self.vocab_size - 1} (the vocabulary has {self.vocab_size})",
                got=f"id {int(window[at])} at position {start + at:,}",
                cause="the file is damaged, or was made with another tokenizer",
                hint="delete it, so that it is made anew from the text",
            )


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a .npy header without trusting it; ValueError where there is none that can be read."""
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the .npy format")


def _names() -> str:
    return ", ".join(kind.name for kind in TOKEN_TYPES)
