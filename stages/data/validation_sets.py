"""The named validation sets of a run (`evaluation.sets`), encoded with its tokenizer.

Each is encoded once: a record beside its token file has a key, of the text, the tokenizer and this version, and the
checksums of the files. What is missing, damaged or of another key is encoded again, from where a process that was
killed has left it.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from threadloom.stages.config import DataConfig, Packing
from threadloom.stages.data.dataset import Dataset
from threadloom.stages.data.encoding.journal import PreparationFolder
from threadloom.stages.data.encoding.pipeline import encode_units
from threadloom.stages.data.encoding.split_files import SplitFiles
from threadloom.stages.data.encoding.units import Unit, document_units, text_units
from threadloom.stages.data.manifest import MANIFEST_FORMAT, SplitRecord, file_sha256, optional_sha256
from threadloom.stages.data.sources.registry import reading_of
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_reading import read_text
from threadloom.stages.data.token_file import (
    DataError,
    TokenFile,
    counted_file,
    documents_file,
    require_window,
    token_type,
)
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.storage import DiskFullError, atomic_write

SETS_FOLDER = "sets"


class _SetRecord(msgspec.Struct, frozen=True):
    """The content of NAME.json."""

    key: str
    """That of `PreparationFolder`."""
    files: SplitRecord


def prepare_sets(sets: Mapping[str, str], data: DataConfig, dataset: Dataset, directory: Path) -> dict[str, TokenFile]:
    """Return name → token file of the texts of `sets`, name → path, in a folder of a prepared directory.

    Records become documents as those of `data`, and rows have the order of `dataset`. Raises TextError, TokenizerError,
    DiskFullError, and DataError for a text without a window or a file that cannot be written.
    """
    folder = directory / SETS_FOLDER
    return {name: _prepared(name, _text(path, data, directory), data, dataset, folder) for name, path in sets.items()}


def _text(path: str, data: DataConfig, scratch: Path) -> Text:
    text = read_text([path], reading=reading_of(data, scratch))
    return text.as_documents() if data.bordered or data.packing is Packing.DOCUMENTS else text


def _prepared(name: str, text: Text, data: DataConfig, dataset: Dataset, directory: Path) -> TokenFile:
    folder = PreparationFolder(directory, [name, text.checksum(), *_key_of_tokens(data, dataset)])
    tokenizer, context = dataset.tokenizer.with_special_tokens(data.special_tokens), dataset.train.context
    record = directory / f"{name}.json"
    try:
        if not _is_up_to_date(record, folder.key):
            written = _encoded(name, text, tokenizer, folder)
            require_window(written.tokens, context, directory / written.path.name)
            record.unlink(missing_ok=True)
            written.publish(directory, None if dataset.order is None else dataset.order.rows)
            files = _split_record(written, text.characters, directory)
            atomic_write(record, msgspec.json.encode(_SetRecord(folder.key, files)))
            folder.remove()
    except DiskFullError:
        raise
    except OSError as error:
        raise DataError(
            str(error.filename or directory),
            expected=f"the tokens of the validation set {name}, written to {directory}",
            got=error.strerror or type(error).__name__,
            cause="the directory is not writable",
            hint="choose another directory",
        ) from error
    return TokenFile.open(directory / f"{name}.npy", tokenizer.vocab_size, context)


def _key_of_tokens(data: DataConfig, dataset: Dataset) -> Sequence[object]:
    """Return all that the tokens of a text depend on, other than the text."""
    made = dataset.manifest
    return [
        MANIFEST_FORMAT, made.tokenizer_sha256, made.vocab_size, made.end_of_text, made.digit_places, made.order_sha256,
        data.special_tokens, version("tokenizers"),
    ]  # fmt: skip


def _is_up_to_date(record: Path, key: str) -> bool:
    """Return True if the files of a set are those of a key, as they were written."""
    try:
        found = msgspec.json.decode(record.read_bytes(), type=_SetRecord)
        return found.key == key and found.files.is_unchanged(record.parent)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _encoded(name: str, text: Text, tokenizer: Tokenizer, folder: PreparationFolder) -> SplitFiles:
    def units() -> Iterator[Unit]:
        if text.documents is None:
            return text_units(0, tokenizer, text.chunks())
        return document_units(0, tokenizer, text.parts())

    kind = token_type(tokenizer.vocab_size)
    (written,) = encode_units(units, [f"{name}.npy"], tokenizer, kind, folder, text.characters)
    return written


def _split_record(written: SplitFiles, characters: int, directory: Path) -> SplitRecord:
    path = directory / written.path.name
    return SplitRecord(
        file=path.name,
        characters=characters,
        tokens=written.tokens,
        sha256=file_sha256(path),
        documents=written.documents,
        documents_sha256=optional_sha256(documents_file(path)),
        counted_sha256=optional_sha256(counted_file(path)),
    )
