"""Conversations that a template has written, in a temporary file, so that each is rendered once for all uses of a text.

A text is read several times: for its checksum, to be cut, to train a tokenizer, to be encoded. Each pass over a file
meets its records in the same order, so the file has them one after another and no index is in memory. A record that
differs from the one that was rendered is rendered again.

The file has no name, and takes at most a quarter of the space that is free where it lies: what does not fit is rendered
at each pass. So is everything if the disk refuses it, since the file is an optional one.
"""

import hashlib
import json
import os
import shutil
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from threadloom.stages.data.conversations.conversation import Conversation
from threadloom.stages.data.documents import Document, Span

_BLOCK = 1 << 18
"""Bytes that are read at a time."""
_SHARE = 4
"""The free space is at least this many times what the file may take."""
_LENGTH = struct.Struct("<Q")

FileKey = tuple[int, int] | Path
"""A file by its device and number, which do not change when it is moved, or by its path if it has none."""


class _Rendered(msgspec.Struct, array_like=True):
    """A conversation in the temporary file."""

    record: int
    """Number of its record in the file that it was read from."""
    key: bytes
    """Checksum of what the template saw."""
    text: str
    counted: tuple[tuple[int, int], ...] | None
    markup: tuple[tuple[int, int], ...] | None


@dataclass
class _Written:
    """The conversations of a file of records."""

    parts: list[tuple[int, int]] = field(default_factory=list)
    """First byte, and the one after the last, of successive conversations."""
    last: int = 0
    """Number of the last record."""


class RenderedConversations:
    """The conversations of the files of a text. Any number of threads may read and add."""

    def __init__(self, folder: Path | None = None, most: int | None = None) -> None:
        """The file is in a folder, by default that of temporary files; `most` is its maximum size in bytes.

        Nothing is written before the first conversation.
        """
        self._folder, self._most = folder, most
        self._file: IO[bytes] | None = None
        self._files: dict[FileKey, _Written] = {}
        self._size = 0
        self._lock = threading.Lock()

    def reading(self, path: Path) -> "RenderedPass":
        """Return a pass over the records of a file."""
        return RenderedPass(self, _key_of(path))

    def conversations(self, key: FileKey) -> Iterator[_Rendered]:
        """Yield the conversations of a file that have been added so far."""
        with self._lock:
            parts = list(self._files[key].parts) if key in self._files else []
        for start, end in parts:
            yield from self._read(start, end)

    def add(self, key: FileKey, rendered: _Rendered) -> None:
        """Add a conversation, unless it or a later one of its file is there, or there is no room."""
        with suppress(OSError, UnicodeEncodeError), self._lock:  # a text that UTF-8 cannot encode is refused later
            content = msgspec.msgpack.encode(rendered)
            content = _LENGTH.pack(len(content)) + content
            written = self._files.setdefault(key, _Written())
            if rendered.record <= written.last or self._size + len(content) > self._limit():
                return
            self._append(content)
            start, end = self._size, self._size + len(content)
            if written.parts and written.parts[-1][1] == start:
                start = written.parts.pop()[0]
            written.parts.append((start, end))
            written.last, self._size = rendered.record, end

    def _limit(self) -> int:
        if self._most is None:
            self._most = shutil.disk_usage(self._folder or tempfile.gettempdir()).free // _SHARE
        return self._most

    def _append(self, content: bytes) -> None:
        """Write at the end; what an error leaves there is written over by the next conversation."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix=".threadloom-", dir=self._folder, buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        view, at = memoryview(content), self._size
        while view:
            count = os.pwrite(self._file.fileno(), view, at)
            view, at = view[count:], at + count

    def _read(self, start: int, end: int) -> Iterator[_Rendered]:
        assert self._file is not None, "there is a part"
        buffer = bytearray()
        while start < end or buffer:
            while len(buffer) < _LENGTH.size or len(buffer) < _LENGTH.size + _LENGTH.unpack_from(buffer)[0]:
                block = os.pread(self._file.fileno(), min(_BLOCK, end - start), start)
                if not block:
                    return
                buffer += block
                start += len(block)
            size = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            yield msgspec.msgpack.decode(memoryview(buffer)[_LENGTH.size : size].tobytes(), type=_Rendered)
            del buffer[:size]


class RenderedPass:
    """One pass over a file, in the order of its records. For one thread."""

    def __init__(self, rendered: RenderedConversations, key: FileKey) -> None:
        self._rendered, self._key = rendered, key
        self._conversations = rendered.conversations(key)
        self._next = self._following()

    def find(self, conversation: Conversation) -> Document | None:
        """Return the document of a conversation that comes after those before; None if it has not been rendered."""
        number = conversation.origin.record or 0
        while self._next is not None and self._next.record < number:
            self._next = self._following()
        found = self._next
        if found is None or found.record != number or found.key != _checksum(conversation):
            return None
        return Document(found.text, conversation.origin, _spans(found.counted), _spans(found.markup))

    def add(self, conversation: Conversation, document: Document) -> None:
        """Keep the document of a conversation."""
        number, key = conversation.origin.record or 0, _checksum(conversation)
        self._rendered.add(self._key, _Rendered(number, key, document.text, document.counted, document.markup))

    def _following(self) -> _Rendered | None:
        try:
            return next(self._conversations, None)
        except (OSError, msgspec.MsgspecError):
            return None


def _spans(spans: tuple[tuple[int, int], ...] | None) -> tuple[Span, ...] | None:
    return None if spans is None else tuple(Span(*span) for span in spans)


def _checksum(conversation: Conversation) -> bytes:
    """Return the checksum of all that the text of a conversation depends on, beside its template."""
    seen = [[message.fields, message.counted] for message in conversation.messages]
    content = json.dumps([seen, conversation.tools], default=str).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def _key_of(path: Path) -> FileKey:
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino
