"""The token files of a split while they are written, which a later process can continue.

The files grow at their ends alone. `SplitProgress` says how much of them counts: whatever a killed process wrote after
that is cut off.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.encoding.encoder import EncodedUnits
from threadloom.stages.data.token_file import TokenWriter, counted_file, documents_file, replace_ids
from threadloom.stages.storage import atomic_file, fsync_directory

_BLOCK = 1 << 18
"""Marks that are written at a time."""


class SplitProgress(msgspec.Struct, kw_only=True):
    """The valid part of the files of a split."""

    tokens: int = 0
    positions: int | None = None
    """Positions of documents that have been written; None of a running text."""
    open_document: int | None = None
    """Position of the last document, which is written once it has a token."""
    counted: bool = False
    """True if there is a file of the tokens that count."""
    sources: list[int] = []
    """Position of the first token of each source."""


class SplitFiles:
    """The files of a split: ids, positions of documents, tokens that count in the loss."""

    def __init__(self, path: Path, kind: np.dtype[Any], progress: SplitProgress | None = None) -> None:
        """Begin the files of a split, or continue those of `progress`; raises OSError."""
        self.path, self._kind = path, kind
        self._state = SplitProgress() if progress is None else progress
        begun = progress is not None
        self._ids = _writer(path, kind, self._state.tokens if begun else None)
        self._documents = self._counted = None
        if self._state.positions is not None:
            self._documents = _writer(documents_file(path), np.dtype(np.int64), self._state.positions)
        if self._state.counted:
            self._counted = _writer(counted_file(path), np.dtype(np.uint8), self._state.tokens)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self._ids.count

    @property
    def documents(self) -> int | None:
        """Number of documents of the finished files; None of a running text."""
        return None if self._documents is None else self._documents.count

    @property
    def sources(self) -> tuple[int, ...]:
        """Position of the first token of each source."""
        return tuple(self._state.sources)

    def add(self, encoded: EncodedUnits) -> None:
        """Append tokens; raises OSError."""
        before = self.tokens
        self._state.sources += [before + position for position in encoded.sources]
        if encoded.documents is not None:
            self._add_documents(before + encoded.documents)
        self._add_marks(encoded.counted, len(encoded.ids))
        self._ids.add(encoded.ids)

    def sync(self) -> SplitProgress:
        """Sync the files, and return which part of them is then valid; raises OSError."""
        for writer in self._writers:
            writer.sync()
        return msgspec.structs.replace(
            self._state, tokens=self.tokens, positions=self.documents, counted=self._counted is not None
        )

    def finish(self) -> None:
        """Complete the files; raises OSError."""
        if self._state.open_document is not None and self._state.open_document < self.tokens:
            self._write_positions([self._state.open_document])
        self._state.open_document = None
        for writer in self._writers:
            writer.finish()
            writer.sync()

    def close(self) -> None:
        """Close the files; what a full disk refuses is lost, and not part of any progress."""
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.file.close()

    def publish(self, directory: Path, rows: NDArray[np.int32] | None) -> None:
        """Put the finished files into a directory, with `rows` (V,) in place of ids; raises OSError.

        Files of another preparation are replaced or removed. These files stay as they are.
        """
        for path in (documents_file(self.path), counted_file(self.path)):
            target = directory / path.name
            if path.exists():
                link_file(path, target)
            else:
                target.unlink(missing_ok=True)
        target = directory / self.path.name
        if rows is None:
            link_file(self.path, target)
            return
        with atomic_file(target) as copy:
            with self.path.open("rb") as file:
                shutil.copyfileobj(file, copy)
            replace_ids(copy, self.tokens, self._kind, rows)

    @property
    def _writers(self) -> list[TokenWriter]:
        return [writer for writer in (self._ids, self._documents, self._counted) if writer is not None]

    def _add_documents(self, starts: NDArray[np.int64]) -> None:
        """Add positions; a document without a token has none."""
        opened = [] if self._state.open_document is None else [self._state.open_document]
        positions = np.concatenate([np.array(opened, np.int64), starts])
        self._write_positions(positions[:-1][positions[:-1] < positions[1:]])
        self._state.open_document = int(positions[-1]) if len(positions) else None

    def _write_positions(self, positions: Any) -> None:
        if self._documents is None:
            self._documents = _writer(documents_file(self.path), np.dtype(np.int64), None)
        self._documents.add(np.asarray(positions, np.int64))

    def _add_marks(self, counted: NDArray[np.bool_] | None, tokens: int) -> None:
        """Add marks; their file begins with the first token that does not count."""
        if self._counted is None and counted is not None:
            self._counted = _writer(counted_file(self.path), np.dtype(np.uint8), None)
            for start in range(0, self.tokens, _BLOCK):
                self._counted.add(np.ones(min(_BLOCK, self.tokens - start), np.uint8))
        if self._counted is not None:
            self._counted.add(np.ones(tokens, np.uint8) if counted is None else counted)


def link_file(path: Path, target: Path) -> None:
    """Put a file at a second place, as a copy if the file system has no links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        with atomic_file(target) as copy, path.open("rb") as file:
            shutil.copyfileobj(file, copy)
        return
    temporary.replace(target)
    fsync_directory(target.parent)


def _writer(path: Path, kind: np.dtype[Any], count: int | None) -> TokenWriter:
    """Return the writer of a new file (`count` is None), or of one whose first `count` elements are valid."""
    file = path.open("w+b" if count is None else "r+b")
    try:
        writer = TokenWriter(file, kind)
        if count is not None:
            writer.count = count
            end = file.tell() + count * kind.itemsize
            if file.seek(0, 2) < end:
                raise OSError(f"{path} has lost its end")
            file.truncate(end)
            file.seek(end)
    except BaseException:
        file.close()
        raise
    return writer
