"""Files of token ids that other programs wrote, as texts: one character per token.

Id n is the character U+0100 + n, or 2,048 further on from the surrogates on, which are no characters. So all that holds
for texts holds for token files: they are read in chunks, split, mixed and checked in the same way. Digits and spaces,
which `NumberTokenizer` shows to people, are none of these characters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.data.chunked_text import CHUNK_CHARACTERS, code_points
from threadloom.stages.data.text_decoding import unreadable
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.token_file import TOKEN_TYPES, DataError, mapped_array
from threadloom.stages.data.token_order import ORDER_FILE

FIRST = 0x100
"""Code point of the id 0."""
LARGEST = 0x10FFFF - FIRST - 0x800
"""The largest id that a token file may have."""

_SURROGATES, _SURROGATE_COUNT = 0xD800, 0x800
_HEADER_INTEGERS = 256
_MAGIC_YEARS = range(20230101, 20300101)
"""The numbers that files of llm.c begin with are dates."""


class _Layout(NamedTuple):
    """A layout of llm.c's token files: the first two integers of its header, and the type of its ids."""

    magic: int
    version: int
    kind: np.dtype[Any]


_LAYOUTS = (
    _Layout(20240520, 1, np.dtype("<u2")),
    _Layout(20240520, 2, np.dtype("<u4")),
    _Layout(20240801, 7, np.dtype("<u4")),
)


def is_token_file(path: Path) -> bool:
    """Return True for an existing file named .npy, and for one named .bin whose beginning is not text."""
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == ".npy":
            return True
        if path.suffix.lower() != ".bin":
            return False
        with path.open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError):  # reported when it is read as text
        return False
    return b"\0" in head or not _is_utf8(head)


def token_chunks(path: Path) -> Iterator[str]:
    """Yield the characters of a token file; raises TextError for one that is damaged, or has an id above `LARGEST`."""
    ids = _ids(path)
    for start in range(0, len(ids), CHUNK_CHARACTERS):
        block = ids[start : start + CHUNK_CHARACTERS].astype(np.int64)
        wrong = (block < 0) | (block > LARGEST)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise TextError(
                str(path),
                expected=f"token ids from 0 to {LARGEST:,}",
                got=f"id {block[at]:,} at position {start + at:,}",
                cause="the file has another layout or element type, or is damaged",
                hint="pass nanoGPT's uint16 without a header, llm.c's layout with one, or a .npy file",
            )
        yield text_of_ids(block)


def text_of_ids(ids: NDArray[Any]) -> str:
    """Return the characters of ids (N,)."""
    points = np.asarray(ids, np.int64) + FIRST
    points[points >= _SURROGATES] += _SURROGATE_COUNT
    return points.astype("<u4").tobytes().decode("utf-32-le")


def ids_of_text(text: str) -> NDArray[np.int32]:
    """Return the ids (N,) of characters; raises ValueError for a character that no id has."""
    points = code_points(text).astype(np.int64)
    points[points >= _SURROGATES] -= _SURROGATE_COUNT
    ids = points - FIRST
    if len(ids) and ids.min() < 0:
        raise ValueError(f"the character {text[int(np.argmax(ids < 0))]!r}")
    return ids.astype(np.int32)


def _ids(path: Path) -> NDArray[Any]:
    """Return the ids of a file as a read-only map (N,)."""
    try:
        if path.suffix.lower() == ".npy":
            return _ids_of_array(path)
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", min(_HEADER_INTEGERS, size // 4))
        if len(header) == _HEADER_INTEGERS and int(header[0]) in _MAGIC_YEARS:
            return _ids_after_header(path, header, size)
        if size % 2:
            raise _truncated(path, "an even number of bytes: uint16 ids without a header, as nanoGPT writes them", size)
        return np.memmap(path, "<u2", "r") if size else np.zeros(0, np.uint16)
    except OSError as error:
        raise unreadable(path, error) from error


def _ids_after_header(path: Path, header: NDArray[Any], size: int) -> NDArray[Any]:
    magic, version, count = (int(number) for number in header[:3])
    kind = next((layout.kind for layout in _LAYOUTS if layout[:2] == (magic, version)), None)
    if kind is None:
        known = ", ".join(f"{layout.magic} with version {layout.version}" for layout in _LAYOUTS)
        raise TextError(
            str(path),
            expected=f"a token file of llm.c: magic number {known}",
            got=f"{magic} with version {version}",
            cause="it is another file of llm.c, such as a model, a tokenizer or an evaluation, or of a newer layout",
            hint="pass the file of tokens, such as fineweb_train_000001.bin",
        )
    start = 4 * _HEADER_INTEGERS
    if size != start + count * kind.itemsize:
        expected = f"{start + count * kind.itemsize:,} bytes for the {count:,} tokens in its header"
        raise _truncated(path, expected, size)
    return np.memmap(path, kind, "r", start, (count,)) if count else np.zeros(0, kind)


def _ids_of_array(path: Path) -> NDArray[Any]:
    if path.with_name(ORDER_FILE).exists():
        raise TextError(
            str(path),
            expected="token ids",
            got=f"rows of the order in {ORDER_FILE} beside it",
            cause="it belongs to a text that was prepared with data.token_order",
            hint="pass the text, or prepare it with data.token_order=id",
        )
    try:
        return mapped_array(path, TOKEN_TYPES)
    except DataError as error:
        hint = "copy it again, or write it with np.save as one dimension of uint16 or uint32"
        raise TextError(str(path), error.expected, error.got, error.cause, hint) from error


def _truncated(path: Path, expected: str, size: int) -> TextError:
    return TextError(
        str(path), expected, f"{size:,} bytes", cause="the file is truncated, or damaged", hint="copy it again"
    )


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a character that the end cuts
    return True
