"""A text in a prepared folder, and the report on it."""

import time
from collections import Counter
from pathlib import Path

import msgspec

from threadloom.stages.config import Config
from threadloom.stages.data import (
    Corpus,
    Dataset,
    Repeats,
    absolute_text,
    length_percentiles,
    prepare,
    read_corpus,
    repeated_documents,
    standard_input,
    with_absolute_paths,
    write_settings,
    write_sources,
)
from threadloom.stages.machine import detect
from threadloom.stages.storage import atomic_write, make_directory

REPORT_FILE = "report.json"


class SplitFigures(msgspec.Struct):
    """The figures of a split."""

    characters: int
    tokens: int
    documents: int | None
    characters_per_token: float
    lengths: dict[str, int] | None
    """Percent → tokens of documents, with the token that ends them."""


class FileFigures(msgspec.Struct):
    """A file of the text."""

    path: str
    characters: int
    records: int | None
    """Documents of a file of records; None for plain text."""
    skipped: int = 0
    """Records that are invalid."""
    empty: int = 0
    reasons: list[str] = []
    """Places and reasons of the first invalid records."""


class LeftOutFile(msgspec.Struct):
    """A file or folder that is not part of the text."""

    path: str
    reason: str
    failed: bool


class PreparationReport(msgspec.Struct):
    """The content of report.json."""

    folder: str
    characters: int
    documents: int | None
    """None of a running text."""
    vocabulary: int
    training: SplitFigures
    validation: SplitFigures
    repeated_documents: Repeats | None
    """None of a running text."""
    repeated_files: int
    """Files whose text is that of an earlier file."""
    files: list[FileFigures]
    left_out: list[LeftOutFile]
    reused: bool
    """True if the folder was up to date."""
    seconds: float


def prepare_folder(config: Config, out: Path, *, force: bool = False) -> PreparationReport:
    """Return the report on a text that is prepared in a folder, unless it is up to date; it is also written there.

    Raises TextError, DataError, TokenizerError and ConfigError as the preparation of a run.
    """
    begin = time.monotonic()
    data = msgspec.structs.replace(with_absolute_paths(config.data), prepared="")
    with standard_input(data.text, out, None) as spooled:
        corpus = read_corpus(data, excluded=[out], standard_input=spooled, scratch=out)
        dataset = prepare(data, config.model, corpus, out, None if force else detect().memory_available)
        make_directory(out)
        write_sources(out, corpus)
        write_settings(out, data, config.model.vocab_size)
        report = _report(corpus, dataset, out, time.monotonic() - begin)
    atomic_write(out / REPORT_FILE, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return report


def report_text(report: PreparationReport) -> str:
    """Return the report in lines; the lists of files are in the file."""
    documents = "one running text" if report.documents is None else f"{report.documents:,} documents"
    files = "1 file" if len(report.files) == 1 else f"{len(report.files):,} files"
    lines = [
        f"{files}, {documents}, {report.characters:,} characters, vocabulary {report.vocabulary:,}",
        *(
            _split_text(name, split)
            for name, split in (("training", report.training), ("validation", report.validation))
        ),
    ]
    if (repeats := report.repeated_documents) is not None:
        share = "" if repeats.compared == 1 else f" (of {repeats.compared:.1%} of the documents, chosen by hash)"
        lines.append(
            f"repeated: {repeats.training:,} training documents; {repeats.validation:,} validation documents that are "
            f"in the training split or repeated{share}"
        )
    if report.repeated_files:
        lines.append(f"repeated: {report.repeated_files:,} files with the text of an earlier one")
    skipped, empty = (sum(getattr(file, name) for file in report.files) for name in ("skipped", "empty"))
    if skipped or empty or report.left_out:
        failed = sum(found.failed for found in report.left_out)
        lines.append(
            f"skipped: {skipped:,} invalid and {empty:,} empty records; {len(report.left_out):,} files or folders left "
            f"out, of which {failed:,} could not be read"
        )
        lines += [f"  {reason}" for file in report.files for reason in file.reasons[:1]][:10]
    how = "up to date" if report.reused else f"prepared in {report.seconds:.1f} s"
    lines.append(f"{report.folder}: {how}; the report by file is in {REPORT_FILE}")
    return "\n".join(lines)


def _split_text(name: str, split: SplitFigures) -> str:
    text = f"{name}: {split.tokens:,} tokens, {split.characters_per_token:.2f} characters a token"
    if split.documents is None or split.lengths is None:
        return text
    lengths = ", ".join(f"{percent} %: {length:,}" for percent, length in split.lengths.items())
    return f"{text}, {split.documents:,} documents; their lengths in tokens: {lengths}"


def _report(corpus: Corpus, data: Dataset, out: Path, seconds: float) -> PreparationReport:
    skipped = {found.path: found for found in corpus.skipped}
    files = [FileFigures(absolute_text(file.path), file.characters, file.records) for file in corpus.files]
    for file, read in zip(files, corpus.files, strict=True):
        if (found := skipped.get(read.path)) is not None:
            file.skipped, file.empty, file.reasons = found.invalid, found.empty, [*map(_utf8, found.reasons)]
    texts = Counter(file.sha256 for file in corpus.files if file.characters)
    return PreparationReport(
        folder=absolute_text(out),
        characters=corpus.characters,
        documents=corpus.documents,
        vocabulary=data.tokenizer.vocab_size,
        training=_figures(data, training=True),
        validation=_figures(data, training=False),
        repeated_documents=repeated_documents(data.train, data.validation),
        repeated_files=texts.total() - len(texts),
        files=files,
        left_out=[LeftOutFile(absolute_text(path), _utf8(reason), failed) for path, reason, failed in corpus.left_out],
        reused=data.reused,
        seconds=seconds,
    )


def _figures(data: Dataset, *, training: bool) -> SplitFigures:
    record, file = (data.manifest.train, data.train) if training else (data.manifest.validation, data.validation)
    ratio = record.characters / record.tokens
    return SplitFigures(record.characters, record.tokens, record.documents, ratio, length_percentiles([file]))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
