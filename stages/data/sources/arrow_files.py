"""Parquet and Arrow files, through pyarrow, which is imported when the first of them is read."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from threadloom.stages.data.documents import Origin
from threadloom.stages.data.sources.records import DocumentMaker, Record, RecordError
from threadloom.stages.data.text_decoding import unreadable
from threadloom.stages.data.text_format import TextError

ROWS = 64
"""Rows that are in memory at a time."""

_ROW = "row"


class Parquet:
    """Parquet files, of which the columns of the text are read."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)
    compressible: ClassVar[bool] = False

    def recognises(self, head: bytes) -> bool:
        """Return True for the signature of the format."""
        return head.startswith(b"PAR1")

    def records(self, path: Path, maker: DocumentMaker) -> Iterator[Record]:
        """Yield the rows; see `RecordFormat`."""
        library = _library(path, "pyarrow.parquet")
        with _explained(path, "Parquet"), library.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, maker)
            yield from _rows(path, file.iter_batches(ROWS, columns=columns, use_threads=False))


class Arrow:
    """Arrow files, which are also those of Feather, and streams of Arrow batches, as `datasets` writes them."""

    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather")
    compressible: ClassVar[bool] = False

    def recognises(self, head: bytes) -> bool:
        """Return True for the signature of Arrow files; streams have none."""
        return head.startswith(b"ARROW1")

    def records(self, path: Path, maker: DocumentMaker) -> Iterator[Record]:
        """Yield the rows; see `RecordFormat`."""
        library = _library(path, "pyarrow")
        with _explained(path, "Arrow"), library.memory_map(str(path)) as mapped:
            is_file = self.recognises(mapped.read(6))
            mapped.seek(0)
            reader = library.ipc.open_file(mapped) if is_file else library.ipc.open_stream(mapped)
            columns = _columns(path, reader.schema.names, maker)
            numbers = range(reader.num_record_batches) if is_file else ()
            batches = map(reader.get_batch, numbers) if is_file else reader
            yield from _rows(path, (batch.select(columns) for batch in batches))


def _library(path: Path, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TextError(
            str(path),
            expected="pyarrow, which reads Parquet and Arrow files",
            got="none installed",
            hint="pip install 'threadloom[parquet]'",
        ) from error


@contextlib.contextmanager
def _explained(path: Path, name: str) -> Iterator[None]:
    """Raise TextError for the errors of the library, which has one for each kind of damage."""
    try:
        yield
    except (TextError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        raise TextError(
            str(path),
            expected=f"a complete {name} file",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            cause="the file is damaged, truncated, or in another format",
            hint="copy or download it again",
        ) from error


def _columns(path: Path, names: Sequence[str], maker: DocumentMaker) -> list[str]:
    found = list(maker.columns(names))
    if not found:
        raise TextError(
            str(path),
            expected=f"a column {maker.needs!r} with the text",
            got=f"the columns {', '.join(map(repr, names))}",
            hint="set data.field to the name of the column, as in data.field=content",
        )
    return found


def _rows(path: Path, batches: Any) -> Iterator[Record]:
    """Yield the rows of batches, each batch in parts."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            for fields in _values(path, batch.slice(start, ROWS), number):
                number += 1
                yield Record(Origin(path, number, _ROW), fields)


def _values(path: Path, batch: Any, before: int) -> list[Any]:
    """Return the fields of each row of a batch, which `before` rows precede; errors for rows that are not UTF-8."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        found: list[Any] = []
        for row in range(batch.num_rows):
            try:
                found += batch.slice(row, 1).to_pylist()
            except UnicodeDecodeError as error:
                origin = Origin(path, before + row + 1, _ROW)
                got = f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1:,} of a text"
                found.append(RecordError(origin, "a text in UTF-8", got))
        return found
