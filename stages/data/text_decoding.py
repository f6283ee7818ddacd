"""The text of one file in chunks: decompressed, checked and decoded while it is read.

A file may be compressed with gzip, zstd, bzip2 or xz, which its first bytes tell. It is decompressed in pieces, so that
a small file with a huge content costs no memory before its reader stops. zstd needs Python 3.14 or the extra `zstd`.
"""

import codecs
import contextlib
import importlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from threadloom.stages.data.chunked_text import CHUNK_CHARACTERS
from threadloom.stages.data.compression import COMPRESSIONS, Compression
from threadloom.stages.data.text_format import SAMPLE_BYTES, TextError, not_text, signature

CHUNK_BYTES = CHUNK_CHARACTERS
"""Bytes that are decoded at a time, which are at most as many characters."""


_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a directory"),
)


def text_chunks(file: Path) -> Iterator[str]:
    """Yield the text of a regular file, without a byte order mark, in chunks that are not empty.

    Raises TextError, possibly after some chunks, if the file cannot be read or decompressed or is not UTF-8 text
    without NUL bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    head, offset, begun = b"", 0, False
    for data in file_content(file):
        head = head or data
        if not offset and (found := signature(file, head)):
            raise TextError(str(file), expected="UTF-8 text", got=found.name, hint=found.remedy)
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _not_text(file, offset - len(pending), pending + data, error.start, head) from error
        zero = data.find(b"\0")
        if zero >= 0:
            raise _not_text(file, offset, data, zero, head)
        kept = text if begun else text.removeprefix("\ufeff")
        begun = begun or bool(text)
        offset += len(data)
        if kept:
            yield kept
    pending = decoder.getstate()[0]
    if pending:
        raise _not_text(file, offset - len(pending), pending, 0, head)


def unreadable(path: Path, error: OSError | ValueError) -> TextError:
    """Return the error for a path that the operating system refuses to open or read."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return TextError(str(path), expected="a readable file or directory", got=reason or type(error).__name__)


def _not_text(file: Path, start: int, data: bytes, at: int, head: bytes) -> TextError:
    around = data[max(0, at - SAMPLE_BYTES // 2) :][: 4 * SAMPLE_BYTES]
    return not_text(file, start + at, data[at], head, around)


def file_content(file: Path) -> Iterator[bytes]:
    """Yield the content of a regular file, decompressed, in pieces that are not empty."""
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise _not_a_file(file, mode)
        with file.open("rb") as raw:
            magic = raw.read(8)
            raw.seek(0)
            compression = next((found for found in COMPRESSIONS if magic.startswith(found.magic)), None)
            if compression is None:
                yield from _pieces(raw)
            else:
                yield from _decompressed(file, raw, compression)
    except (OSError, ValueError) as error:
        if isinstance(error, TextError):
            raise
        raise unreadable(file, error) from error


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while data := stream.read(CHUNK_BYTES):
        yield data


def _decompressed(file: Path, raw: BinaryIO, compression: Compression) -> Iterator[bytes]:
    library = None
    for module in compression.modules:
        with contextlib.suppress(ImportError):
            library = library or importlib.import_module(module)
    if library is None:
        extra = " or pip install 'threadloom[zstd]'" if compression.name == "zstd" else ""
        raise TextError(
            str(file),
            expected=f"a module that reads {compression.name} files ({' or '.join(compression.modules)})",
            got="none installed",
            hint=f"decompress the file with `{compression.command} -d`{extra}",
        )
    stream: BinaryIO = library.open(raw)
    pieces = _pieces(stream)
    while True:
        try:
            data = next(pieces, None)
        except MemoryError:
            raise
        except Exception as error:  # each library has errors of its own
            raise TextError(
                str(file),
                expected=f"a complete {compression.name} file",
                got=str(error) or type(error).__name__,
                cause="the file is damaged or truncated",
                hint=f"`{compression.command} -t` tests a file; copy or download it again",
            ) from error
        if data is None:
            return
        yield data


def _not_a_file(file: Path, mode: int) -> TextError:
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "another kind of file")
    return TextError(
        str(file),
        expected="a file or a directory",
        got=kind,
        cause="a text is read again when its run is resumed",
        hint="write the text to a file first and pass that file",
    )
