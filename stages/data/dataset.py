"""Preparation of a text: tokenised once, split, written, and reused as long as text and settings stay the same.

The text is read, tokenised and written in chunks, so the memory of a preparation does not depend on the length of the
text, except for the counts of words from which a BPE tokenizer is trained.

A prepared directory contains `train.npy`, `validation.npy`, `tokenizer.json` and `manifest.json`, and the files that
accompany a pretrained tokenizer in the folder of its model, with the `config.json` of that model as
`model_config.json`. If the token files have rows in an order of their own (`data.token_order`), it is in
`token_order.npy`. Every file is written atomically, the manifest last. The manifest has the checksums of the others,
so a directory with a missing or damaged file is prepared again instead of used.
"""

import enum
import hashlib
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from threadloom.stages.config import (
    ConfigError,
    DataConfig,
    Digits,
    InputError,
    ModelConfig,
    SpecialTokens,
    TokenizerKind,
    TokenOrder,
)
from threadloom.stages.data.abacus_tokenizer import digit_table
from threadloom.stages.data.chunked_text import ChunkedText, reported, split_at
from threadloom.stages.data.digit_places import PlaceOffsets
from threadloom.stages.data.pretrained_tokenizer import is_prepared_from_another, pretrained_companions
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_record import text_changes
from threadloom.stages.data.token_file import (
    DataError,
    TokenFile,
    replace_ids,
    require_window,
    token_counts,
    token_type,
    write_token_file,
)
from threadloom.stages.data.token_order import ORDER_FILE, encode_order, read_order, vocabulary_order
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.data.tokenizer_files import (
    COMPANIONS,
    MODEL_CONFIG_FILE,
    TEMPLATES_FOLDER,
    load_tokenizer,
)
from threadloom.stages.data.tokenizer_registry import TOKENIZERS, create_tokenizer, max_vocabulary, preparation_bytes
from threadloom.stages.data.vocabulary_files import TOKENIZER_FILE
from threadloom.stages.models import VocabularyOrder
from threadloom.stages.storage import (
    DiskFullError,
    atomic_file,
    atomic_write,
    make_directory,
    require_free_space,
)

MANIFEST_FORMAT = 1
MANIFEST_FILE = "manifest.json"


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
    special_tokens: SpecialTokens = SpecialTokens.TOKENS
    tokenizer_sha256: str
    token_order: TokenOrder = TokenOrder.ID
    order_sha256: str | None = None
    """Checksum of the file of the order; None for that of the ids."""
    digit_places: int = 0
    """Places that have tokens of their own for each digit; 0 without `data.digits=abacus`."""
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
    order: VocabularyOrder | None
    """Order of the rows that the token files have instead of ids; None: they have ids."""
    offsets: PlaceOffsets | None
    """Offsets of the places of digits in training sequences (`data.digit_offset`); None: places are as in the text."""
    reused: bool
    """True if the directory was up to date and nothing was tokenised."""
    preparation_bytes: int
    """Memory that the preparation was planned to take; 0 if the directory was reused."""


@dataclass(frozen=True)
class _Preparation:
    """A text and the settings that its preparation depends on; `ModelConfig.vocab_size` may be open."""

    text: ChunkedText
    data: DataConfig
    vocab_size: int | None
    context: int
    directory: Path
    checksum: str
    limit: int

    @property
    def cut(self) -> int:
        """Number of characters of the training split: the first `data.train_fraction` of the text."""
        return int(self.text.characters * self.data.train_fraction)

    def open(self, manifest: DatasetManifest, tokenizer: Tokenizer, preparation_bytes: int | None) -> Dataset:
        """Return the dataset of the written files; `preparation_bytes` is None if they are reused."""
        order = _order(self.directory, manifest)
        offsets = _offsets(self.data, tokenizer, order)
        train, validation = (
            TokenFile.open(self.directory / record.file, manifest.vocab_size, self.context)
            for record in (manifest.train, manifest.validation)
        )
        reused, path = preparation_bytes is None, self.directory / TOKENIZER_FILE
        return Dataset(tokenizer, path, train, validation, manifest, order, offsets, reused, preparation_bytes or 0)


def prepare(
    data: DataConfig, model: ModelConfig, text: ChunkedText, directory: Path, available: int | None = None
) -> Dataset:
    """Return the dataset of a text, prepared in `directory` (created if necessary) unless it is up to date.

    The text is split by characters: the first `data.train_fraction` for training, the rest for validation, each
    tokenised separately. A BPE tokenizer is trained on the training split, the alphabet of a character tokenizer is
    that of the whole text. All ids are below the tokenizer's `vocab_size`. The result is the same for an open
    `model.vocab_size` and for the size that it resolves to.

    Raises DataError if the text is empty, if a split has fewer than context + 1 tokens, or if a file cannot be written,
    DiskFullError for a full disk, before the text is tokenised if its tokens are at least as many as its characters,
    TextError if a file of the text changes meanwhile, TokenizerError if a pretrained tokenizer cannot be read, and
    ConfigError if the vocabulary is too small for the tokenizer
    or if the preparation takes more than `available` bytes of memory (None: no limit).
    """
    if not text.characters:
        hint = "pass a text with --text FILE_OR_DIR"
        raise DataError(str(directory), expected="a text to tokenise", got="empty files", hint=hint)
    limit = max_vocabulary(data, model.vocab_size, text)
    wanted = _Preparation(text, data, model.vocab_size, model.context, directory, text.checksum(), limit)
    return _open_prepared(wanted) or _prepare(wanted, available)


def require_same_text(directory: Path, text: Text) -> None:
    """Raise DataError if `directory` was prepared from another text; an incomplete directory passes."""
    try:
        prepared = msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=DatasetManifest).text_sha256
    except (OSError, msgspec.DecodeError):
        return
    if prepared != text.checksum():
        changes = text_changes(directory, text)
        raise DataError(
            str(directory),
            expected="the text that the run was started with",
            got=f"another one of {text.characters:,} characters",
            cause=changes or "a file of the text was changed, added or removed, or --text names another",
            hint="pass the same text with --resume --text FILE_OR_DIR, or start a new run with another --out",
        )


def prepared_order(directory: Path) -> VocabularyOrder | None:
    """Return the order of the rows in the token files of a prepared directory; None if they have ids.

    Raises DataError if the file of the order is missing or damaged.
    """
    try:
        manifest = msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=DatasetManifest)
    except (OSError, msgspec.DecodeError):  # without a manifest the files may have been written by hand
        return None
    return _order(directory, manifest)


def _order(directory: Path, manifest: DatasetManifest) -> VocabularyOrder | None:
    return None if manifest.order_sha256 is None else read_order(directory / ORDER_FILE, manifest.order_sha256)


def _offsets(data: DataConfig, tokenizer: Tokenizer, order: VocabularyOrder | None) -> PlaceOffsets | None:
    """Return the offsets of places; raises ConfigError if the tokenizer has none, or not as many."""
    if not data.digit_offset:
        return None
    table = digit_table(tokenizer)
    if table is None or table.last <= data.digit_offset:
        raise ConfigError(
            "data.digit_offset",
            expected="a tokenizer with more places of digits",
            got="one without places" if table is None else f"{data.digit_offset} with {table.last} places",
            hint="set data.digits=abacus and a larger data.digit_places, or leave data.digit_offset out",
        )
    return PlaceOffsets(table, data.digit_offset, order)


def _digit_places(data: DataConfig) -> int:
    return data.digit_places if data.digits is Digits.ABACUS else 0


def _open_prepared(wanted: _Preparation) -> Dataset | None:
    """Return the dataset in the directory, or None unless it is complete and up to date."""
    directory, data = wanted.directory, wanted.data
    try:
        manifest = msgspec.json.decode((directory / MANIFEST_FILE).read_bytes(), type=DatasetManifest)
        found = (manifest.format, manifest.text_sha256, manifest.tokenizer, manifest.limit, manifest.train_fraction)
        if found != (MANIFEST_FORMAT, wanted.checksum, data.tokenizer, wanted.limit, data.train_fraction):
            return None
        settings = (data.special_tokens, data.token_order, _digit_places(data))
        if (manifest.special_tokens, manifest.token_order, manifest.digit_places) != settings:
            return None
        for record in (manifest.train, manifest.validation):
            if Path(record.file).name != record.file or _sha256(directory / record.file) != record.sha256:
                return None
        if _sha256(directory / TOKENIZER_FILE) != manifest.tokenizer_sha256:
            return None
        if is_prepared_from_another(data, directory / TOKENIZER_FILE):
            return None
        tokenizer = load_tokenizer(directory / TOKENIZER_FILE)
        if tokenizer.vocab_size != manifest.vocab_size:
            return None
        _order(directory, manifest)
    except (OSError, msgspec.MsgspecError, InputError, UnicodeDecodeError):
        return None
    return wanted.open(manifest, tokenizer, None)


def _prepare(wanted: _Preparation, available: int | None) -> Dataset:
    text, directory = wanted.text, wanted.directory
    needed = preparation_bytes(wanted.data, text)
    if available is not None and needed > available:
        raise _too_large(wanted, needed, available)
    learned = text if TOKENIZERS[wanted.data.tokenizer].learns_validation else text.first(wanted.cut)
    tokenizer = create_tokenizer(wanted.data, wanted.vocab_size, learned)
    try:
        manifest = _write(wanted, tokenizer)
    except DiskFullError:
        raise
    except OSError as error:
        raise DataError(
            str(error.filename or directory),
            expected=f"token files written to {directory}",
            got=error.strerror or type(error).__name__,
            cause="the directory is not writable",
            hint="choose another directory; an incomplete directory is never used",
        ) from error
    return wanted.open(manifest, tokenizer, needed)


def _too_large(wanted: _Preparation, needed: int, available: int) -> ConfigError:
    bpe = wanted.data.tokenizer is TokenizerKind.BPE
    return ConfigError(
        "data.text",
        expected=f"a text whose preparation fits into the {available / 1e6:,.0f} MB of memory that are available",
        got=f"one of {wanted.text.characters:,} characters that needs about {needed / 1e6:,.0f} MB",
        cause="the training of a BPE tokenizer counts every different word" if bpe else None,
        hint=f"use a part of the text{' or data.tokenizer=bytes' if bpe else ''}; --force starts it anyway",
    )


def _write(wanted: _Preparation, tokenizer: Tokenizer) -> DatasetManifest:
    directory, data = wanted.directory, wanted.data
    directory.mkdir(parents=True, exist_ok=True)
    tokens, order = _write_token_files(wanted, tokenizer.with_special_tokens(data.special_tokens))
    _copy_companions(data, directory)
    characters = {Split.TRAIN: wanted.cut, Split.VALIDATION: wanted.text.characters - wanted.cut}
    records = {
        split.value: SplitRecord(
            file=_token_file(directory, split).name,
            characters=characters[split],
            tokens=tokens[split],
            sha256=_sha256(_token_file(directory, split)),
        )
        for split in Split
    }
    manifest = DatasetManifest(
        format=MANIFEST_FORMAT,
        text_sha256=wanted.checksum,
        tokenizer=data.tokenizer,
        limit=wanted.limit,
        vocab_size=tokenizer.vocab_size,
        train_fraction=data.train_fraction,
        special_tokens=data.special_tokens,
        tokenizer_sha256=_write_tokenizer(directory / TOKENIZER_FILE, tokenizer),
        token_order=data.token_order,
        order_sha256=_write_order(directory / ORDER_FILE, order),
        digit_places=_digit_places(data),
        **records,
    )
    atomic_write(directory / MANIFEST_FILE, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return manifest


def _write_token_files(wanted: _Preparation, tokenizer: Tokenizer) -> tuple[dict[Split, int], VocabularyOrder | None]:
    """Write the token files of both splits, of rows if they have an order; return their numbers of tokens and that.

    On any error neither is replaced.
    """
    chunks = reported(wanted.text.chunks(), wanted.text.characters, "tokenising the text")
    kind = token_type(tokenizer.vocab_size)
    tokens, open_files = dict[Split, int](), dict[Split, BinaryIO]()
    if not TOKENIZERS[wanted.data.tokenizer].compresses:
        require_free_space(wanted.directory, kind.itemsize * wanted.text.characters)
    with ExitStack() as files:
        for split, part in zip(Split, split_at(chunks, wanted.cut), strict=True):
            path = _token_file(wanted.directory, split)
            file = open_files[split] = files.enter_context(atomic_file(path))
            tokens[split] = write_token_file(file, tokenizer.encode_chunks(part), kind)
            require_window(tokens[split], wanted.context, path)
        order = None
        if wanted.data.token_order is not TokenOrder.ID:
            counts = token_counts(open_files[Split.TRAIN], tokens[Split.TRAIN], kind, tokenizer.vocab_size)
            order = vocabulary_order(wanted.data.token_order, counts)
            for split, file in open_files.items():
                replace_ids(file, tokens[split], kind, order.rows)
        (wanted.directory / MANIFEST_FILE).unlink(missing_ok=True)
    return tokens, order


def _write_order(path: Path, order: VocabularyOrder | None) -> str | None:
    """Write the file of an order, or remove that of another preparation; return its checksum."""
    if order is None:
        path.unlink(missing_ok=True)
        return None
    content = encode_order(order)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def _token_file(directory: Path, split: Split) -> Path:
    return directory / f"{split.value}.npy"


def _write_tokenizer(path: Path, tokenizer: Tokenizer) -> str:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.made")
    try:
        tokenizer.save(temporary)
        content = temporary.read_bytes()
    finally:
        temporary.unlink(missing_ok=True)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


def _copy_companions(data: DataConfig, directory: Path) -> None:
    """Copy the files that accompany a pretrained tokenizer, and remove those of another one."""
    companions = {name: path.read_bytes() for name, path in pretrained_companions(data).items()}
    for name in (*COMPANIONS, MODEL_CONFIG_FILE):
        if name not in companions:
            (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / TEMPLATES_FOLDER, ignore_errors=True)
    for name, content in companions.items():
        make_directory((directory / name).parent)
        atomic_write(directory / name, content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
