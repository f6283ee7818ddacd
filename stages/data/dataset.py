"""Preparation of a text: tokenised once, split, written, and reused as long as text and settings stay the same.

A prepared directory contains `train.npy`, `validation.npy`, `tokenizer.json` and `manifest.json`. Every file is written
atomically, the manifest last. The manifest has the checksums of the others, so a directory with a missing or damaged
file is prepared again instead of used.
"""

import enum
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from numpy.lib import format as npy
from numpy.typing import NDArray

from threadloom.stages.config import DataConfig, InputError, ModelConfig, TokenizerKind
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_record import text_changes
from threadloom.stages.data.token_file import DataError, TokenFile, token_type
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.data.tokenizer_registry import TOKENIZERS, load_tokenizer, train_tokenizer
from threadloom.stages.storage import atomic_write

MANIFEST_FORMAT = 1
MANIFEST_FILE, TOKENIZER_FILE = "manifest.json", "tokenizer.json"


class Split(enum.Enum):
    """The parts of a text; the values are the names of the token files without `.npy`."""

    TRAIN = "train"
    VALIDATION = "validation"


class SplitRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One token file, as the manifest describes it."""

    file: str
    characters: int
    """Number of characters of the split, from which follow the characters per token."""
    tokens: int
    sha256: str
    """Checksum of the whole file."""


class DatasetManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `manifest.json`: the text, the settings and the files of a prepared directory."""

    format: int
    text_sha256: str
    tokenizer: TokenizerKind
    limit: int
    """Largest vocabulary that the tokenizer could have; `vocab_size` is the actual one."""
    vocab_size: int
    train_fraction: float
    tokenizer_sha256: str
    train: SplitRecord
    validation: SplitRecord


@dataclass(frozen=True)
class Dataset:
    """A prepared text: open token files and their tokenizer."""

    tokenizer: Tokenizer
    tokenizer_path: Path
    train: TokenFile
    validation: TokenFile
    manifest: DatasetManifest
    reused: bool
    """True if the directory was up to date and nothing was tokenised."""


@dataclass(frozen=True)
class _Preparation:
    """A text and the settings that its preparation depends on; `ModelConfig.vocab_size` may be open."""

    text: str
    data: DataConfig
    vocab_size: int | None
    context: int
    directory: Path
    checksum: str
    limit: int

    def parts(self) -> dict[Split, str]:
        """Return the text of each split: the first `data.train_fraction` of the characters for training."""
        cut = int(len(self.text) * self.data.train_fraction)
        return {Split.TRAIN: self.text[:cut], Split.VALIDATION: self.text[cut:]}

    def open(self, manifest: DatasetManifest, tokenizer: Tokenizer, *, reused: bool) -> Dataset:
        """Return the dataset of the written files."""
        train, validation = (
            TokenFile.open(self.directory / record.file, manifest.vocab_size, self.context)
            for record in (manifest.train, manifest.validation)
        )
        return Dataset(tokenizer, self.directory / TOKENIZER_FILE, train, validation, manifest, reused)


def prepare(data: DataConfig, model: ModelConfig, text: str, directory: Path) -> Dataset:
    """Return the dataset of a text, prepared in `directory` (created if necessary) unless it is up to date.

    The text is split by characters: the first `data.train_fraction` for training, the rest for validation, each
    tokenised separately. A BPE tokenizer is trained on the training split, the alphabet of a character tokenizer is
    that of the whole text. All ids are below the tokenizer's `vocab_size`. The result is the same for an open
    `model.vocab_size` and for the size that it resolves to.

    Raises DataError if the text is empty, if a split has fewer than context + 1 tokens, or if a file cannot be written,
    and ConfigError if the vocabulary is too small for the tokenizer.
    """
    if not text:
        hint = "pass a text with --text FILE_OR_DIR"
        raise DataError(str(directory), expected="a text to tokenise", got="empty files", hint=hint)
    limit = TOKENIZERS[data.tokenizer].max_vocabulary(text, model.vocab_size, data.alphabet)
    wanted = _Preparation(text, data, model.vocab_size, model.context, directory, _checksum(text), limit)
    return _open_prepared(wanted) or _prepare(wanted)


def require_same_text(directory: Path, text: Text) -> None:
    """Raise DataError if `directory` was prepared from another text; an incomplete directory passes."""
    try:
        prepared = msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=DatasetManifest).text_sha256
    except (OSError, msgspec.DecodeError):
        return
    if prepared != _checksum(text.text):
        changes = text_changes(directory, text)
        raise DataError(
            str(directory),
            expected="the text that the run was started with",
            got=f"another one of {len(text.text):,} characters",
            cause=changes or "a file of the text was changed, added or removed, or --text names another",
            hint="pass the same text with --resume --text FILE_OR_DIR, or start a new run with another --out",
        )


def _open_prepared(wanted: _Preparation) -> Dataset | None:
    """Return the dataset in the directory, or None unless it is complete and up to date."""
    directory, data = wanted.directory, wanted.data
    try:
        manifest = msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=DatasetManifest)
        found = (manifest.format, manifest.text_sha256, manifest.tokenizer, manifest.limit, manifest.train_fraction)
        if found != (MANIFEST_FORMAT, wanted.checksum, data.tokenizer, wanted.limit, data.train_fraction):
            return None
        for record in (manifest.train, manifest.validation):
            if Path(record.file).name != record.file or _sha256(directory / record.file) != record.sha256:
                return None
        if _sha256(directory / TOKENIZER_FILE) != manifest.tokenizer_sha256:
            return None
        tokenizer = load_tokenizer(directory / TOKENIZER_FILE)
        if tokenizer.vocab_size != manifest.vocab_size:
            return None
    except (OSError, msgspec.MsgspecError, InputError, UnicodeDecodeError):
        return None
    return wanted.open(manifest, tokenizer, reused=True)


def _prepare(wanted: _Preparation) -> Dataset:
    parts = wanted.parts()
    learned = wanted.text if TOKENIZERS[wanted.data.tokenizer].learns_validation else parts[Split.TRAIN]
    tokenizer = train_tokenizer(wanted.data, wanted.vocab_size, learned)
    kind = token_type(tokenizer.vocab_size)
    ids = {split: tokenizer.encode(part).astype(kind) for split, part in parts.items()}
    for split, array in ids.items():  # raises for a split that is too short, before anything is written
        TokenFile(array, tokenizer.vocab_size, wanted.context, _token_file(wanted.directory, split))
    try:
        manifest = _write(wanted, tokenizer, ids)
    except OSError as error:
        size = sum(array.nbytes for array in ids.values())
        raise DataError(
            str(error.filename or wanted.directory),
            expected=f"{size:,} bytes of token files written to {wanted.directory}",
            got=error.strerror or type(error).__name__,
            cause="the disk is full, or the directory is not writable",
            hint="free some space or choose another directory; an incomplete directory is never used",
        ) from error
    return wanted.open(manifest, tokenizer, reused=False)


def _write(wanted: _Preparation, tokenizer: Tokenizer, ids: Mapping[Split, NDArray[Any]]) -> DatasetManifest:
    directory, data = wanted.directory, wanted.data
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_FILE).unlink(missing_ok=True)
    records = {}
    for split, part in wanted.parts().items():
        path = _token_file(directory, split)
        _write_ids(path, ids[split])
        records[split.value] = SplitRecord(
            file=path.name, characters=len(part), tokens=len(ids[split]), sha256=_sha256(path)
        )
    manifest = DatasetManifest(
        format=MANIFEST_FORMAT,
        text_sha256=wanted.checksum,
        tokenizer=data.tokenizer,
        limit=wanted.limit,
        vocab_size=tokenizer.vocab_size,
        train_fraction=data.train_fraction,
        tokenizer_sha256=_write_tokenizer(directory / TOKENIZER_FILE, tokenizer),
        **records,
    )
    atomic_write(directory / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def _token_file(directory: Path, split: Split) -> Path:
    return directory / f"{split.value}.npy"


def _write_ids(path: Path, ids: NDArray[Any]) -> None:
    def write(file: BinaryIO) -> None:  # np.save does not report a short write on a full disk
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(ids))
        file.write(ids.data)

    atomic_write(path, write)


def _write_tokenizer(path: Path, tokenizer: Tokenizer) -> str:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.made")
    try:
        tokenizer.save(temporary)
        content = temporary.read_bytes()
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
