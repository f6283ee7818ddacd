"""Writing a prepared directory: the tokenizer of a text, its token files and their manifest."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from threadloom.stages.data.corpus import Corpus, Cut, Progress, joined
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
from threadloom.stages.data.split_writer import SplitWriter
from threadloom.stages.data.token_file import (
    DataError,
    counted_file,
    documents_file,
    replace_ids,
    require_window,
    token_counts,
    token_type,
)
from threadloom.stages.data.token_order import ORDER_FILE, encode_order, vocabulary_order
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.data.tokenizer_files import (
    COMPANIONS,
    MODEL_CONFIG_FILE,
    TEMPLATES_FOLDER,
)
from threadloom.stages.data.tokenizer_registry import TOKENIZERS, create_tokenizer, preparation_bytes
from threadloom.stages.data.vocabulary_files import TOKENIZER_FILE
from threadloom.stages.models import VocabularyOrder
from threadloom.stages.storage import (
    DiskFullError,
    atomic_write,
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


def digit_places(data: DataConfig) -> int:
    """Return the places that have tokens of their own for each digit."""
    return data.digit_places if data.digits is Digits.ABACUS else 0


def write_prepared(wanted: Preparation, available: int | None) -> tuple[DatasetManifest, Tokenizer, int]:
    """Write the files of a preparation; return their manifest, the tokenizer, and the memory that it was planned with.

    Raises as `prepare`.
    """
    text, directory = wanted.text, wanted.directory
    needed = preparation_bytes(wanted.data, text)
    if available is not None and needed > available:
        raise _too_large(wanted, needed, available)
    cuts = wanted.corpus.cuts(wanted.data.train_fraction, directory)
    learned = text
    if not TOKENIZERS[wanted.data.tokenizer].learns_validation:
        sources = zip(wanted.corpus.sources, cuts, strict=True)
        learned = joined([source.first(cut.characters) for source, cut in sources])
    tokenizer = create_tokenizer(wanted.data, wanted.vocab_size, learned)
    try:
        manifest = _write(wanted, cuts, tokenizer)
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
    return manifest, tokenizer, needed


def _too_large(wanted: Preparation, needed: int, available: int) -> ConfigError:
    bpe = wanted.data.tokenizer is TokenizerKind.BPE
    return ConfigError(
        "data.text",
        expected=f"a text whose preparation fits into the {available / 1e6:,.0f} MB of memory that are available",
        got=f"one of {wanted.text.characters:,} characters that needs about {needed / 1e6:,.0f} MB",
        cause="the training of a BPE tokenizer counts every different word" if bpe else None,
        hint=f"use a part of the text{' or data.tokenizer=bytes' if bpe else ''}; --force starts it anyway",
    )


def _write(wanted: Preparation, cuts: Sequence[Cut], tokenizer: Tokenizer) -> DatasetManifest:
    directory, data = wanted.directory, wanted.data
    directory.mkdir(parents=True, exist_ok=True)
    writers, order = _write_token_files(wanted, cuts, tokenizer.with_special_tokens(data.special_tokens))
    _copy_companions(data, directory)
    trained = sum(cut.characters for cut in cuts)
    characters = {Split.TRAIN: trained, Split.VALIDATION: wanted.corpus.characters - trained}
    records = {
        split.value: SplitRecord(
            file=writer.path.name,
            characters=characters[split],
            tokens=writer.tokens,
            sha256=file_sha256(writer.path),
            documents=writer.documents,
            documents_sha256=optional_sha256(documents_file(writer.path)),
            counted_sha256=optional_sha256(counted_file(writer.path)),
            sources=tuple(writer.sources),
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
        end_of_text=tokenizer.end_of_text.id if tokenizer.end_of_text else None,
        **records,
    )
    write_manifest(directory, manifest)
    return manifest


def _write_token_files(
    wanted: Preparation, cuts: Sequence[Cut], tokenizer: Tokenizer
) -> tuple[dict[Split, SplitWriter], VocabularyOrder | None]:
    """Write the token files of both splits, of rows if they have an order; return their writers and that.

    On any error neither is replaced.
    """
    kind = token_type(tokenizer.vocab_size)
    if not TOKENIZERS[wanted.data.tokenizer].compresses:
        require_free_space(wanted.directory, kind.itemsize * wanted.corpus.characters)
    with ExitStack() as files:
        writers = {
            split: SplitWriter(files, wanted.directory / f"{split.value}.npy", kind, tokenizer) for split in Split
        }
        _add_texts(wanted.corpus, cuts, writers[Split.TRAIN], writers[Split.VALIDATION])
        for writer in writers.values():
            require_window(writer.tokens, wanted.context, writer.path)
            writer.finish()
        _require_sources(writers[Split.TRAIN], wanted.context)
        order = None
        if wanted.data.token_order is not TokenOrder.ID:
            train = writers[Split.TRAIN]
            counts = token_counts(train.file, train.tokens, kind, tokenizer.vocab_size)
            order = vocabulary_order(wanted.data.token_order, counts)
            for writer in writers.values():
                replace_ids(writer.file, writer.tokens, kind, order.rows)
        (wanted.directory / MANIFEST_FILE).unlink(missing_ok=True)
        for writer in writers.values():
            writer.remove_others()
    return writers, order


def _require_sources(train: SplitWriter, context: int) -> None:
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


def _add_texts(corpus: Corpus, cuts: Sequence[Cut], train: SplitWriter, validation: SplitWriter) -> None:
    """Add the sources to the training split, and what is held out of them, or the validation text, to the other."""
    progress = Progress(corpus.characters)
    for source, cut in zip(corpus.sources, cuts, strict=True):
        train.begin_source()
        if corpus.validation is None:
            validation.begin_source()
        if cut.documents is None:
            for writer, part in zip(
                (train, validation), split_at(progress.chunks(source), cut.characters), strict=True
            ):
                writer.add_text(part)
        else:
            parts = progress.parts(source)
            train.add_documents(islice(parts, cut.documents))
            if corpus.validation is None:
                validation.add_documents(parts)
    if corpus.validation is not None:
        validation.begin_source()
        if corpus.validation.documents is None:
            validation.add_text(progress.chunks(corpus.validation))
        else:
            validation.add_documents(progress.parts(corpus.validation))


def _write_order(path: Path, order: VocabularyOrder | None) -> str | None:
    """Write the file of an order, or remove that of another preparation; return its checksum."""
    if order is None:
        path.unlink(missing_ok=True)
        return None
    content = encode_order(order)
    atomic_write(path, content)
    return hashlib.sha256(content).hexdigest()


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
