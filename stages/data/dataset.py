"""Preparation of a text: tokenised once, split, written, and reused as long as text and settings stay the same.

The text is read, tokenised and written in chunks, so the memory of a preparation does not depend on the length of the
text, except for the counts of words from which a BPE tokenizer is trained.

A prepared directory contains `train.npy`, `validation.npy`, `tokenizer.json` and `manifest.json`. If a text consists of
documents, it has their positions (`train.documents.npy`), and `train.counted.npy` if not all tokens count in the loss.
The sources of a mixture follow each other in one file. Besides, there are the files that accompany a pretrained
tokenizer in the folder of its model, with the `config.json` of that model as `model_config.json`. If the token files
have rows in an order of their own (`data.token_order`), it is in `token_order.npy`. Every file is written atomically,
the manifest last. The manifest has the checksums of the others, so a directory with a missing or damaged file is
prepared again instead of used.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from threadloom.stages.config import (
    ConfigError,
    DataConfig,
    InputError,
    ModelConfig,
    SpecialTokens,
)
from threadloom.stages.data.abacus_tokenizer import digit_table
from threadloom.stages.data.chunked_text import ChunkedText
from threadloom.stages.data.corpus import Corpus
from threadloom.stages.data.digit_places import PlaceOffsets
from threadloom.stages.data.manifest import (
    MANIFEST_FORMAT,
    DatasetManifest,
    file_sha256,
    read_manifest,
)
from threadloom.stages.data.mixture import Mixture
from threadloom.stages.data.preparation import Preparation, digit_places, preparing, write_prepared
from threadloom.stages.data.prepared_folder import copy_prepared
from threadloom.stages.data.pretrained_tokenizer import is_prepared_from_another
from threadloom.stages.data.text_record import text_changes
from threadloom.stages.data.token_file import (
    DataError,
    TokenFile,
)
from threadloom.stages.data.token_order import ORDER_FILE, read_order
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.data.tokenizer_files import (
    load_tokenizer,
)
from threadloom.stages.data.tokenizer_registry import max_vocabulary
from threadloom.stages.data.vocabulary_files import TOKENIZER_FILE
from threadloom.stages.models import VocabularyOrder


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
    mixture: Mixture | None
    """The sources of the training split and their weights (`data.mixture`); None: there is one."""
    reused: bool
    """True if the directory was up to date and nothing was tokenised."""
    preparation_bytes: int
    """Memory that the preparation was planned to take; 0 if the directory was reused."""


def prepare(
    data: DataConfig, model: ModelConfig, text: ChunkedText | Corpus, directory: Path, available: int | None = None
) -> Dataset:
    """Return the dataset of texts, prepared in `directory` (created if necessary) unless it is up to date.

    Without a validation text, each text is split: a running one by characters, the first `data.train_fraction` for
    training and the rest for validation, each tokenised separately; documents, of which whole ones are held out, by
    those that end within it. A BPE tokenizer is trained on the training split, the alphabet of a character tokenizer is
    that of all texts. All ids are below the tokenizer's `vocab_size`. The result is the same for an open
    `model.vocab_size` and for the size that it resolves to.

    Raises DataError if a text is empty, if a split has fewer than context + 1 tokens, or if a file cannot be written,
    DiskFullError for a full disk, before the text is tokenised if its tokens are at least as many as its characters,
    TextError if a file of the text changes meanwhile, TokenizerError if a pretrained tokenizer cannot be read, and
    ConfigError if the vocabulary is too small for the tokenizer or if the preparation takes more than `available` bytes
    of memory (None: no limit).
    """
    corpus = text if isinstance(text, Corpus) else Corpus((text,))
    if not all(source.characters for source in corpus.sources):
        hint = "pass a text with --text FILE_OR_DIR"
        raise DataError(str(directory), expected="a text to tokenise", got="empty files", hint=hint)
    limit = max_vocabulary(data, model.vocab_size, corpus.text)
    wanted = Preparation(corpus, data, model.vocab_size, model.context, directory, corpus.checksum(), limit)
    if not directory.exists():
        wanted.require_memory(available)
    with preparing(directory):
        if (found := _open_prepared(wanted)) is not None:
            return found
        return _opened(directory, data, model.context, *write_prepared(wanted, available))


def open_prepared(data: DataConfig, model: ModelConfig, directory: Path) -> Dataset:
    """Return the dataset of the folder `data.prepared`, whose files are put into `directory`; no text is read.

    Raises ConfigError for settings that it was not prepared with, DataError for a folder that is not prepared or
    damaged, or for a split with fewer than context + 1 tokens.
    """
    manifest = copy_prepared(data, directory)
    if not all(record.is_unchanged(directory) for record in (manifest.train, manifest.validation)):
        raise DataError(
            data.prepared,
            expected="the token files that its manifest describes",
            got="others",
            cause="they are damaged",
            hint="prepare the text again in another folder",
        )
    return _opened(directory, data, model.context, manifest, load_tokenizer(directory / TOKENIZER_FILE), None)


def require_same_text(directory: Path, corpus: Corpus) -> None:
    """Raise DataError if `directory` was prepared from other texts; an incomplete directory passes."""
    try:
        prepared = read_manifest(directory)
    except (OSError, msgspec.DecodeError):
        return
    for name, before, now in (
        ("text", prepared.text_sha256, corpus.checksum()),
        ("validation text", prepared.validation_sha256, corpus.validation_checksum()),
    ):
        if before != now:
            found = f"another one; all texts together have {corpus.characters:,} characters" if now else "none"
            raise DataError(
                str(directory),
                expected=f"the {name} that the run was started with"
                if before
                else f"no {name}, as when it was started",
                got=found,
                cause=text_changes(directory, corpus)
                or "a file of the text was changed, added or removed, or --text names another",
                hint="pass the same text with --resume --text FILE_OR_DIR, or start a new run with another --out",
            )


def prepared_order(directory: Path) -> VocabularyOrder | None:
    """Return the order of the rows in the token files of a prepared directory; None if they have ids.

    Raises DataError if the file of the order is missing or damaged.
    """
    try:
        manifest = read_manifest(directory)
    except (OSError, msgspec.DecodeError):  # without a manifest the files may have been written by hand
        return None
    return _order(directory, manifest)


def prepared_mixture(directory: Path, data: DataConfig) -> Mixture | None:
    """Return the sources in the training split of a prepared directory, with the weights of `data`; None for one."""
    try:
        train = read_manifest(directory).train
    except (OSError, msgspec.DecodeError):  # the same
        return None
    return Mixture.of(data.mixture, train.sources, train.tokens)


def prepared_special_tokens(directory: Path) -> SpecialTokens:
    """Return the treatment of special tokens in the text of a prepared directory; that of text without a manifest."""
    try:
        return read_manifest(directory).special_tokens
    except (OSError, msgspec.DecodeError):  # the same
        return SpecialTokens.TEXT


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


def _open_prepared(wanted: Preparation) -> Dataset | None:
    """Return the dataset in the directory, or None unless it is complete and up to date."""
    directory, data = wanted.directory, wanted.data
    try:
        manifest = read_manifest(directory)
        found = (manifest.format, manifest.text_sha256, manifest.tokenizer, manifest.limit, manifest.train_fraction)
        if found != (MANIFEST_FORMAT, wanted.checksum, data.tokenizer, wanted.limit, data.train_fraction):
            return None
        settings = (data.special_tokens, data.token_order, digit_places(data), wanted.corpus.validation_checksum())
        recorded = (manifest.special_tokens, manifest.token_order, manifest.digit_places, manifest.validation_sha256)
        if recorded != settings:
            return None
        if not all(record.is_unchanged(directory) for record in (manifest.train, manifest.validation)):
            return None
        if file_sha256(directory / TOKENIZER_FILE) != manifest.tokenizer_sha256:
            return None
        if is_prepared_from_another(data, directory / TOKENIZER_FILE):
            return None
        tokenizer = load_tokenizer(directory / TOKENIZER_FILE)
        end = tokenizer.end_of_text.id if tokenizer.end_of_text else None
        if (tokenizer.vocab_size, end) != (manifest.vocab_size, manifest.end_of_text):
            return None
        _order(directory, manifest)
    except (OSError, msgspec.MsgspecError, InputError, UnicodeDecodeError):
        return None
    return _opened(directory, data, wanted.context, manifest, tokenizer, None)


def _opened(
    directory: Path,
    data: DataConfig,
    context: int,
    manifest: DatasetManifest,
    tokenizer: Tokenizer,
    preparation_bytes: int | None,
) -> Dataset:
    """Return the dataset of the written files; `preparation_bytes` is None if they are reused."""
    order = _order(directory, manifest)
    train, validation = (
        TokenFile.open(directory / record.file, manifest.vocab_size, context)
        for record in (manifest.train, manifest.validation)
    )
    return Dataset(
        tokenizer=tokenizer,
        tokenizer_path=directory / TOKENIZER_FILE,
        train=train,
        validation=validation,
        manifest=manifest,
        order=order,
        offsets=_offsets(data, tokenizer, order),
        mixture=Mixture.of(data.mixture, manifest.train.sources, manifest.train.tokens),
        reused=preparation_bytes is None,
        preparation_bytes=preparation_bytes or 0,
    )
