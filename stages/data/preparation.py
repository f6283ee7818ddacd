"""Writing a prepared directory: the tokenizer of a text, its token files and their manifest."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from threadloom.stages.config import (
    ConfigError,
    DataConfig,
    Digits,
    TokenizerKind,
    TokenOrder,
)
from threadloom.stages.data.chunked_text import ChunkedText, split_at
from threadloom.stages.data.conversations.record_documents import ConversationDocuments
from threadloom.stages.data.corpus import Corpus, Cut, joined
from threadloom.stages.data.encoding.journal import PreparationFolder
from threadloom.stages.data.encoding.pipeline import encode_units
from threadloom.stages.data.encoding.split_files import SplitFiles
from threadloom.stages.data.encoding.units import Unit, begin_source, document_units, text_units
from threadloom.stages.data.manifest import (
    MANIFEST_FILE,
    MANIFEST_FORMAT,
    DatasetManifest,
    Split,
    SplitRecord,
    file_sha256,
    optional_sha256,
    write_manifest,
)
from threadloom.stages.data.pretrained_tokenizer import pretrained_companions
from threadloom.stages.data.token_file import (
    DataError,
    counted_file,
    documents_file,
    require_window,
    token_counts,
    token_type,
)
from threadloom.stages.data.token_order import ORDER_FILE, encode_order, vocabulary_order
from threadloom.stages.data.tokenizer import Tokenizer, TokenizerError
from threadloom.stages.data.tokenizer_files import (
    COMPANIONS,
    MODEL_CONFIG_FILE,
    TEMPLATE_FILE,
    TEMPLATES_FOLDER,
    load_tokenizer,
)
from threadloom.stages.data.tokenizer_registry import TOKENIZERS, create_tokenizer, preparation_bytes
from threadloom.stages.data.vocabulary_files import TOKENIZER_FILE
from threadloom.stages.models import VocabularyOrder
from threadloom.stages.storage import (
    DiskFullError,
    atomic_write,
    directory_lock,
    make_directory,
    require_free_space,
)


@dataclass(frozen=True)
class Preparation:
    """Texts and the settings that their preparation depends on; `ModelConfig.vocab_size` may be open."""

    corpus: Corpus
    data: DataConfig
    vocab_size: int | None
    context: int
    directory: Path
    checksum: str
    limit: int

    @property
    def text(self) -> ChunkedText:
        """All texts, one after another."""
        return self.corpus.text

    @cached_property
    def needed(self) -> int:
        """Memory that the preparation takes, in bytes: an estimate."""
        return preparation_bytes(self.data, self.text)

    def require_memory(self, available: int | None) -> None:
        """Raise ConfigError if the preparation takes more than `available` bytes of memory (None: no limit)."""
        if available is not None and self.needed > available:
            raise _too_large(self, self.needed, available)


def digit_places(data: DataConfig) -> int:
    """Return the places that have tokens of their own for each digit."""
    return data.digit_places if data.digits is Digits.ABACUS else 0


def write_prepared(wanted: Preparation, available: int | None) -> tuple[DatasetManifest, Tokenizer, int]:
    """Write the files of a preparation; return their manifest, the tokenizer, and the memory that it was planned with.

    Raises as `prepare`.
    """
    text, directory = wanted.text, wanted.directory
    wanted.require_memory(available)
    cuts = wanted.corpus.cuts(wanted.data.train_fraction, directory)
    learned = text
    if not TOKENIZERS[wanted.data.tokenizer].learns_validation:
        sources = zip(wanted.corpus.sources, cuts, strict=True)
        learned = joined([source.first(cut.characters) for source, cut in sources])
    folder, tokenizer = _begin(wanted, learned)
    try:
        return _write(wanted, cuts, folder, tokenizer), tokenizer, wanted.needed
    except Exception:  # another start would fail in the same way; what a signal stops is continued
        folder.remove()
        raise


@contextmanager
def preparing(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is created if necessary; raises DataError for one that is not writable."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with directory_lock(
            directory, f"another process prepares a text in {directory}; waiting until it has finished"
        ):
            yield
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


def _begin(wanted: Preparation, learned: ChunkedText) -> tuple[PreparationFolder, Tokenizer]:
    """Return the folder of a preparation and its tokenizer, which is there if a process has made it before."""
    data, pretrained = wanted.data, wanted.data.tokenizer is TokenizerKind.PRETRAINED
    given = create_tokenizer(data, wanted.vocab_size, learned) if pretrained else None
    key = [
        wanted.checksum, wanted.corpus.validation_checksum(), data.train_fraction, data.tokenizer, wanted.limit,
        data.special_tokens, digit_places(data), version("tokenizers"),
        None if given is None else _sha256_of(_content(wanted.directory, given)), _end_of_text(given),
    ]  # fmt: skip
    folder = PreparationFolder(wanted.directory, key)
    folder.begin()
    path = folder.path / TOKENIZER_FILE
    if given is not None:
        return folder, given
    if path.exists():
        with suppress(TokenizerError):
            return folder, load_tokenizer(path)
    tokenizer = create_tokenizer(data, wanted.vocab_size, learned)
    _write_tokenizer(path, tokenizer)
    return folder, tokenizer


def _content(directory: Path, tokenizer: Tokenizer) -> bytes:
    """Return the content of a tokenizer's file, which is written to a directory for a moment."""
    path = directory / f".{TOKENIZER_FILE}.{os.getpid()}.made"
    try:
        tokenizer.save(path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _end_of_text(tokenizer: Tokenizer | None) -> int | None:
    """Return the id of the token that ends a text, which need not be in the tokenizer's file."""
    return None if tokenizer is None or tokenizer.end_of_text is None else tokenizer.end_of_text.id


def _too_large(wanted: Preparation, needed: int, available: int) -> ConfigError:
    bpe = wanted.data.tokenizer is TokenizerKind.BPE
    return ConfigError(
        "data.text",
        expected=f"a text whose preparation fits into the {available / 1e6:,.0f} MB of memory that are available",
        got=f"one of {wanted.text.characters:,} characters that needs about {needed / 1e6:,.0f} MB",
        cause="the training of a BPE tokenizer counts every different word" if bpe else None,
        hint=f"use a part of the text{' or data.tokenizer=bytes' if bpe else ''}; --force starts it anyway",
    )


def _write(
    wanted: Preparation, cuts: Sequence[Cut], folder: PreparationFolder, tokenizer: Tokenizer
) -> DatasetManifest:
    directory, data = wanted.directory, wanted.data
    writers, order = _write_token_files(wanted, cuts, folder, tokenizer.with_special_tokens(data.special_tokens))
    _copy_companions(data, directory)
    trained = sum(cut.characters for cut in cuts)
    characters = {Split.TRAIN: trained, Split.VALIDATION: wanted.corpus.characters - trained}
    records = {
        split.value: SplitRecord(
            file=writer.path.name,
            characters=characters[split],
            tokens=writer.tokens,
            sha256=file_sha256(directory / writer.path.name),
            documents=writer.documents,
            documents_sha256=optional_sha256(documents_file(directory / writer.path.name)),
            counted_sha256=optional_sha256(counted_file(directory / writer.path.name)),
            sources=writer.sources,
        )
        for split, writer in writers.items()
    }
    manifest = DatasetManifest(
        format=MANIFEST_FORMAT,
        text_sha256=wanted.checksum,
        validation_sha256=wanted.corpus.validation_checksum(),
        tokenizer=data.tokenizer,
        limit=wanted.limit,
        vocab_size=tokenizer.vocab_size,
        train_fraction=data.train_fraction,
        special_tokens=data.special_tokens,
        tokenizer_sha256=_write_tokenizer(directory / TOKENIZER_FILE, tokenizer),
        token_order=data.token_order,
        order_sha256=_write_order(directory / ORDER_FILE, order),
        digit_places=digit_places(data),
        end_of_text=_end_of_text(tokenizer),
        **records,
    )
    write_manifest(directory, manifest)
    folder.remove()
    return manifest


def _write_token_files(
    wanted: Preparation, cuts: Sequence[Cut], folder: PreparationFolder, tokenizer: Tokenizer
) -> tuple[dict[Split, SplitFiles], VocabularyOrder | None]:
    """Write the token files of both splits, of rows if they have an order; return them as they were and that.

    On any error neither is replaced.
    """
    kind, directory = token_type(tokenizer.vocab_size), wanted.directory
    if not TOKENIZERS[wanted.data.tokenizer].compresses:
        require_free_space(directory, kind.itemsize * wanted.corpus.characters)
    names = [f"{split.value}.npy" for split in Split]
    characters = wanted.corpus.characters
    written = encode_units(lambda: _units(wanted.corpus, cuts, tokenizer), names, tokenizer, kind, folder, characters)
    files = dict(zip(Split, written, strict=True))
    for split in written:
        require_window(split.tokens, wanted.context, directory / split.path.name)
    train = files[Split.TRAIN]
    _require_sources(train, wanted.context)
    order = None
    if wanted.data.token_order is not TokenOrder.ID:
        with train.path.open("rb") as file:
            order = vocabulary_order(
                wanted.data.token_order, token_counts(file, train.tokens, kind, tokenizer.vocab_size)
            )
    (directory / MANIFEST_FILE).unlink(missing_ok=True)
    for split in written:
        split.publish(directory, None if order is None else order.rows)
    return files, order


def _require_sources(train: SplitFiles, context: int) -> None:
    """Raise DataError unless each source of a mixture has a window of its own."""
    ends = (*train.sources[1:], train.tokens)
    for number, (start, end) in enumerate(zip(train.sources, ends, strict=True)):
        if end - start < context + 1:
            raise DataError(
                f"data.text, entry {number + 1}",
                expected=f"at least {context + 1:,} training tokens of each source: a context and the token after it",
                got=f"{end - start:,}",
                hint="use more text of this source, a smaller model.context, or leave the source out",
            )


def _units(corpus: Corpus, cuts: Sequence[Cut], tokenizer: Tokenizer) -> Iterator[Unit]:
    """Yield the sources for the training split, and what is held out of them, or the validation text, for the other."""
    train, validation = range(len(Split))
    for source, cut in zip(corpus.sources, cuts, strict=True):
        yield begin_source(train)
        if corpus.validation is None:
            yield begin_source(validation)
        if cut.documents is None:
            for split, chunks in enumerate(split_at(source.chunks(), cut.characters)):
                yield from text_units(split, tokenizer, chunks)
        else:
            parts = source.parts()
            yield from document_units(train, tokenizer, islice(parts, cut.documents))
            if corpus.validation is None:
                yield from document_units(validation, tokenizer, parts)
    if corpus.validation is not None:
        yield begin_source(validation)
        if corpus.validation.documents is None:
            yield from text_units(validation, tokenizer, corpus.validation.chunks())
        else:
            yield from document_units(validation, tokenizer, corpus.validation.parts())


def _write_order(path: Path, order: VocabularyOrder | None) -> str | None:
    """Write the file of an order, or remove that of another preparation; return its checksum."""
    if order is None:
        path.unlink(missing_ok=True)
        return None
    content = encode_order(order)
    atomic_write(path, content)
    return _sha256_of(content)


def _write_tokenizer(path: Path, tokenizer: Tokenizer) -> str:
    """Write the file of a tokenizer; return its checksum."""
    content = _content(path.parent, tokenizer)
    atomic_write(path, content)
    return _sha256_of(content)


def _copy_companions(data: DataConfig, directory: Path) -> None:
    """Copy the files that accompany a pretrained tokenizer, and remove those of another one.

    A chat template that is set replaces that of the tokenizer.
    """
    companions = {name: path.read_bytes() for name, path in pretrained_companions(data).items()}
    if data.chat_template:
        companions[TEMPLATE_FILE] = ConversationDocuments.of(data).template.source.encode()
    for name in (*COMPANIONS, MODEL_CONFIG_FILE):
        if name not in companions:
            (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / TEMPLATES_FOLDER, ignore_errors=True)
    for name, content in companions.items():
        make_directory((directory / name).parent)
        atomic_write(directory / name, content)
