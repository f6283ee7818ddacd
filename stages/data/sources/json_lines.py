"""JSON Lines: one JSON object per line, also compressed. Empty lines are no records."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from threadloom.stages.data.documents import Origin
from threadloom.stages.data.sources.records import LONGEST_RECORD, DocumentMaker, Record, RecordError
from threadloom.stages.data.text_decoding import file_content

DEEPEST = 200
"""Maximum depth of the objects and lists of a record, at which Python's parser is far from its limit."""

_MARK = b"\xef\xbb\xbf"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SHOWN = 40
"""Characters of a line that a message shows."""


class JsonLines:
    """Files of lines, each of which is a JSON object."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    compressible: ClassVar[bool] = True

    def recognises(self, head: bytes) -> bool:
        """Return False: plain text may begin in the same way."""
        return False

    def records(self, path: Path, maker: DocumentMaker) -> Iterator[Record]:
        """Yield the objects of the lines; see `RecordFormat`."""
        return json_records(path)


def json_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a file's lines, or their errors; raises TextError for a file that cannot be read."""
    for number, line in enumerate(lines(file_content(path)), start=1):
        origin = Origin(path, number)
        if line is None:
            got = f"one of more than {LONGEST_RECORD:,}"
            error = RecordError(origin, f"a line of at most {LONGEST_RECORD:,} bytes", got)
            yield Record(origin, error)
            continue
        content = line.removeprefix(_MARK) if number == 1 else line
        if content.strip():
            yield Record(origin, _fields(content, origin))


def lines(pieces: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a content that arrives in pieces, without their line ends; None for one that is too long."""
    parts: list[bytes] = []
    length = 0
    for piece in pieces:
        *complete, rest = piece.split(b"\n")
        for line in complete:
            whole = length + len(line) <= LONGEST_RECORD
            yield b"".join([*parts, line]) if whole else None
            parts, length = [], 0
        length += len(rest)
        parts = [*parts, rest] if length <= LONGEST_RECORD else []  # the rest of a line that is too long is not kept
    if length:
        yield b"".join(parts) if length <= LONGEST_RECORD else None


def _fields(line: bytes, origin: Origin) -> dict[str, Any] | RecordError:
    """Return the object of a line, or the error of a line without one."""
    expected = "a JSON object"
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1:,} of the line"
        return RecordError(origin, f"{expected} in UTF-8", got, "convert the file with `iconv -f ENCODING -t UTF-8`")
    if _depth(line) > DEEPEST:
        return RecordError(origin, f"{expected} of at most {DEEPEST} levels", "a deeper one")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        shown = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
        got = f"{shown!r}, which is not JSON ({error.msg} at character {error.pos + 1:,})"
        return RecordError(origin, expected, got)
    except ValueError as error:  # an integer of thousands of digits
        return RecordError(origin, expected, str(error))
    if not isinstance(found, dict):
        return RecordError(origin, expected, f"a value of type {type(found).__name__}")
    return found


def _depth(line: bytes) -> int:
    """Return the depth of a line's brackets, or an upper bound if it is harmless; strings are left out."""
    bound = line.count(b"[") + line.count(b"{")
    if bound <= DEEPEST:
        return bound
    signs = np.frombuffer(_STRING.sub(b"", line), np.uint8)
    steps = np.isin(signs, list(b"[{")).astype(np.int64) - np.isin(signs, list(b"]}"))
    return int(np.cumsum(steps).max(initial=0))
