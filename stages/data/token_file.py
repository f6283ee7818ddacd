"""Token files: ids in a .npy file, memory-mapped read-only and checked before use.

If the tokens are those of documents, a second file has their positions (`documents_file`); if some tokens do not count
in the loss, a third one has a byte per token (`counted_file`).

Guarantees: `TokenFile.open` rejects a file with an invalid header, size or type. `TokenFile.read` rejects a window with
an id outside [0, vocab_size), checking the caller's copy, whose values a kernel will use as indices. A file must not
change while it is open: truncating a mapped file kills the process.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from threadloom.stages.config import InputError
from threadloom.stages.data.epochs import EpochWindows
from threadloom.stages.data.mixture import Range
from threadloom.stages.models import VocabularyOrder

TOKEN_TYPES: tuple[np.dtype[Any], ...] = tuple(np.dtype(kind) for kind in (np.uint8, np.uint16, np.int32, np.uint32))
"""The element types that a token file may have."""

IGNORED_TARGET = -1
"""The target of a row that does not count: that of `kernels.common`, which would load Numba."""

SYNCED_BYTES = 32 << 20
"""Bytes after which a file that is being written is synced."""

_BLOCK = 1 << 18
"""Ids that are counted or replaced at a time."""

_POSITION, _FLAG = np.dtype(np.int64), np.dtype(np.uint8)
"""The element types of the positions of documents, and of the marks of tokens that count."""

_PREPARE_AGAIN = "delete it to prepare it again from the text"


class DataError(InputError):
    """Token data that cannot be used or written; `subject` is the file or directory."""


def documents_file(path: Path) -> Path:
    """Return the path of the positions of documents that belong to a token file: train.npy → train.documents.npy."""
    return path.with_suffix(".documents.npy")


def counted_file(path: Path) -> Path:
    """Return the path of the marks of tokens that count in the loss: train.npy → train.counted.npy."""
    return path.with_suffix(".counted.npy")


def token_type(vocab_size: int) -> np.dtype[Any]:
    """Return the element type of new token files: uint16 if all ids fit, otherwise uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def require_window(tokens: int, context: int, path: Path) -> None:
    """Raise DataError unless a file of `tokens` tokens has a window of context + 1."""
    if tokens < context + 1:
        raise DataError(
            str(path),
            expected=f"at least {context + 1:,} tokens: a context of {context:,} and the token after it",
            got=f"{tokens:,}",
            hint="use more text, a smaller model.context or another data.train_fraction",
        )


class IntegerAppender:
    """Appends integers that arrive in parts to a file, which is synced to the disk as it grows.

    So a stop signal never waits for the whole file.
    """

    def __init__(self, file: BinaryIO, kind: np.dtype[Any]) -> None:
        """`kind` is the type of the elements."""
        self.file, self.count = file, 0
        self._kind, self._unsynced = kind, 0

    def add(self, values: NDArray[Any]) -> None:
        """Append values (N,); raises OSError."""
        content = values.astype(self._kind)  # np.save would not report a short write on a full disk
        self.file.write(content.data)
        self.count += len(content)
        self._unsynced += content.nbytes
        if self._unsynced >= SYNCED_BYTES:
            self.sync()

    def sync(self) -> None:
        """Sync the file to the disk; raises OSError."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self._unsynced = 0

    def mapped(self) -> NDArray[Any]:
        """Return the values (N,) of a file that has nothing else, as a read-only map; raises OSError."""
        self.file.flush()
        return np.asarray(np.memmap(self.file, self._kind, "r", shape=(self.count,)))


class TokenWriter(IntegerAppender):
    """Writes a .npy file of integers that arrive in parts.

    The header has a fixed length, so it is overwritten with the number of elements at the end.
    """

    def __init__(self, file: BinaryIO, kind: np.dtype[Any]) -> None:
        """Write the header of a file with elements of type `kind`; raises OSError."""
        super().__init__(file, kind)
        file.write(_header(0, kind))

    def finish(self) -> None:
        """Complete the header; raises OSError."""
        self.file.seek(0)
        self.file.write(_header(self.count, self._kind))


def token_counts(file: BinaryIO, count: int, kind: np.dtype[Any], vocab_size: int) -> NDArray[np.int64]:
    """Return how often each id (V,) is in a file that a `TokenWriter` wrote, which is still open."""
    counts = np.zeros(vocab_size, np.int64)
    for _, ids in _written_blocks(file, count, kind):
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def replace_ids(file: BinaryIO, count: int, kind: np.dtype[Any], replacements: NDArray[np.int32]) -> None:
    """Replace each id in a file that a `TokenWriter` wrote by its entry in `replacements` (V,). Raises OSError."""
    for position, ids in _written_blocks(file, count, kind):
        file.seek(position)
        file.write(replacements[ids].astype(kind).data)


def _written_blocks(file: BinaryIO, count: int, kind: np.dtype[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield position in the file and ids of each block."""
    position = len(_header(count, kind))
    for first in range(0, count, _BLOCK):
        file.seek(position)
        ids = np.frombuffer(file.read(min(_BLOCK, count - first) * kind.itemsize), kind)
        yield position, ids
        position += ids.nbytes


class TokenFile:
    """A sequence of token ids, read in windows of context + 1 ids. Any number of threads may read concurrently."""

    def __init__(
        self,
        ids: NDArray[Any],
        vocab_size: int,
        context: int,
        path: Path,
        order: VocabularyOrder | None = None,
        *,
        documents: NDArray[np.int64] | None = None,
        counted: NDArray[np.uint8] | None = None,
    ) -> None:
        """Wrap ids (N,) of one of `TOKEN_TYPES`; `path` names them in errors. Raises DataError if N < context + 1.

        With `order` the file has rows of that order, and `read` and `tokenizer_ids` return the ids of the tokenizer.
        `documents` (D,) are the positions of the first token of each document, in ascending order; None: the tokens are
        one running text. `counted` (N,) is 1 for a token that counts in the loss as a target and 0 for another; None:
        all count.
        """
        if ids.dtype not in TOKEN_TYPES or ids.ndim != 1:
            names = _type_names(TOKEN_TYPES)
            raise ValueError(f"ids must have one dimension and a type of {names}, got {ids.dtype} {ids.shape}")
        require_window(len(ids), context, path)
        self.ids, self.vocab_size, self.context, self.path = ids, vocab_size, context, path
        self.documents, self.counted = documents, counted
        self._order = None if order is None else order.extended(vocab_size).ids

    @classmethod
    def open(cls, path: Path, vocab_size: int, context: int, order: VocabularyOrder | None = None) -> "TokenFile":
        """Map a .npy file of ids, with the files of its documents and of the tokens that count, if they exist.

        `order` is as in the constructor. Raises DataError for a missing, damaged or truncated file and for another
        content.
        """
        ids = mapped_array(path, TOKEN_TYPES)
        documents, counted = _optional(documents_file(path), _POSITION), _optional(counted_file(path), _FLAG)
        if documents is not None and (not len(documents) or documents[0] != 0 or documents[-1] >= len(ids)):
            raise _not_of(
                documents_file(path), f"positions from 0 to less than {len(ids):,}, the tokens of {path.name}"
            )
        if counted is not None and len(counted) != len(ids):
            raise _not_of(counted_file(path), f"a mark for each of the {len(ids):,} tokens of {path.name}")
        return cls(ids, vocab_size, context, path, order, documents=documents, counted=counted)

    def with_context(self, context: int) -> "TokenFile":
        """Return the same file, read in windows of another size; raises DataError if it is too short for one."""
        require_window(len(self.ids), context, self.path)
        other = copy(self)
        other.context = context
        return other

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def starts(self) -> int:
        """Number of windows; window i starts at token i."""
        return len(self.ids) - self.context

    @property
    def all_count(self) -> bool:
        """True if every target counts."""
        return self.counted is None

    @property
    def padding(self) -> float | None:
        """None: windows have no padding."""
        return None

    def starts_within(self, positions: Range) -> Range:
        """Return the first window within some positions, and the one after the last; there may be none."""
        return Range(positions.start, positions.end - self.context)

    def epochs(self, starts: Range, seed: int) -> EpochWindows:
        """Return the windows of each epoch, of those that start from one position to another."""
        return EpochWindows(starts.end - starts.start + self.context, self.context, seed, starts.start)

    def span(self, first: int, end: int) -> NDArray[np.int32]:
        """Return the ids from one position to another; raises DataError for an id outside [0, vocab_size)."""
        found = self.ids[first:end]
        ids = found.astype(np.int32)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise self._outside(found, first)
        return ids if self._order is None else self._order[ids]

    def write_starts(self, start: int, starts: NDArray[np.int32]) -> None:
        """Make a window one document: `starts` (T,) is the row at which the document of each row begins."""
        starts.fill(0)

    def read(self, start: int, ids: NDArray[np.int32], targets: NDArray[np.int32]) -> None:
        """Write the window at `start` to the caller's `ids` (T,) and `targets` (T,), where T is the context.

        Targets that do not count are `IGNORED_TARGET`. Raises DataError for an id outside [0, vocab_size); the contents
        of the buffers are then undefined.
        """
        window = self.ids[start : start + self.context + 1]
        ids[:] = window[:-1]
        targets[:-1] = ids[1:]
        targets[-1] = window[-1]
        if ids.min() < 0 or ids.max() >= self.vocab_size or not 0 <= targets[-1] < self.vocab_size:
            raise self._outside(window, start)
        if self._order is not None:
            ids[:], targets[:] = self._order[ids], self._order[targets]
        if self.counted is not None:
            targets[self._counted_in(start) == 0] = IGNORED_TARGET

    def targets_counted(self, starts: Iterable[int]) -> int:
        """Return how many targets count in the windows that begin at `starts`, which may overlap."""
        if self.counted is None:
            return sum(self.context for _ in starts)
        return sum(int(np.count_nonzero(self._counted_in(start))) for start in starts)

    def _counted_in(self, start: int) -> NDArray[np.uint8]:
        """Return which targets of a window count (T,)."""
        assert self.counted is not None, "the caller has checked it"
        return self.counted[start + 1 : start + self.context + 1]

    def counts(self) -> NDArray[np.int64]:
        """Return how often each entry of the vocabulary is in the file (V,); raises DataError as `read`."""
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, len(self), _BLOCK):
            block = self.ids[start : start + _BLOCK]
            if block.min() < 0 or block.max() >= self.vocab_size:
                raise self._outside(block, start)
            counts += np.bincount(block, minlength=self.vocab_size)
        return counts

    def _outside(self, window: NDArray[Any], start: int) -> DataError:
        """Return the error for the first id of a window at `start` that is outside the vocabulary."""
        at = int(np.argmax((window < 0) | (window >= self.vocab_size)))
        return DataError(
            str(self.path),
            expected=f"ids from 0 to {self.vocab_size - 1} (the vocabulary has {self.vocab_size})",
            got=f"id {int(window[at])} at position {start + at:,}",
            cause="the file is damaged, or from another tokenizer",
            hint=_PREPARE_AGAIN,
        )

    def tokenizer_ids(self, start: int, end: int) -> NDArray[Any]:
        """Return the ids of the tokenizer from one position to another; those outside the vocabulary are unchanged."""
        ids: NDArray[Any] = self.ids[start:end]
        if self._order is None or (len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size):
            return ids
        found: NDArray[Any] = self._order[ids]
        return found


def _optional(path: Path, kind: np.dtype[Any]) -> NDArray[Any] | None:
    """Return the array in a file that need not exist."""
    return mapped_array(path, (kind,)) if path.exists() else None


def _not_of(path: Path, expected: str) -> DataError:
    """Return the error for a file that does not belong to the token file beside it."""
    return DataError(
        str(path), expected, "others", "one of the two files was replaced", "resume the run, which prepares both again"
    )


def mapped_array(path: Path, kinds: Sequence[np.dtype[Any]]) -> NDArray[Any]:
    """Return the array (N,) in a .npy file as a read-only map; raises DataError."""
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _read_header(file)
            start = file.tell()
    except (OSError, ValueError, EOFError) as error:
        unreadable = isinstance(error, OSError)
        raise DataError(
            str(path),
            expected="a NumPy file (.npy) of token ids",
            got=(error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error),
            hint=None if unreadable else _PREPARE_AGAIN,
        ) from error
    if len(shape) != 1 or fortran or dtype not in kinds:
        raise DataError(
            str(path),
            expected=f"one dimension of {_type_names(kinds)}",
            got=f"shape {shape} of {dtype}",
            hint=_PREPARE_AGAIN,
        )
    expected, got = start + shape[0] * dtype.itemsize, path.stat().st_size
    if got != expected:
        raise DataError(
            str(path),
            expected=f"{expected:,} bytes for the {shape[0]:,} tokens in its header",
            got=f"{got:,} bytes",
            cause="the file is truncated" if got < expected else "data was appended to the file",
            hint=f"{_PREPARE_AGAIN}, or copy it again",
        )
    return np.asarray(np.memmap(path, dtype, "r", start, shape)) if shape[0] else np.zeros(0, dtype)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and type from a .npy header; raises ValueError for an invalid one."""
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the .npy format")


def _header(count: int, kind: np.dtype[Any]) -> bytes:
    """Return the header of a .npy file of `count` elements; NumPy leaves room for more digits of the number."""
    content = io.BytesIO()
    npy.write_array_header_1_0(content, {"shape": (count,), "fortran_order": False, "descr": npy.dtype_to_descr(kind)})
    return content.getvalue()


def _type_names(kinds: Sequence[np.dtype[Any]]) -> str:
    return ", ".join(kind.name for kind in kinds)
