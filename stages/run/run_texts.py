"""The texts of a run: read, reported, checked at a resume, and prepared in the run directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from loguru import logger

from threadloom.stages.config import Config, printable
from threadloom.stages.data import (
    Corpus,
    Dataset,
    TextError,
    absolute_text,
    open_prepared,
    prepare,
    read_corpus,
    recorded_outputs,
    require_same_text,
    standard_input,
    with_absolute_paths,
    write_sources,
)
from threadloom.stages.storage import RunDirectory, RunMode

MOST_NAMED = 10
"""Maximum number of files that are left out of the text and named in the log."""


@contextmanager
def corpus_of(config: Config, out: Path, mode: RunMode) -> Iterator[tuple[Config, Corpus | None, Path | None]]:
    """Yield the configuration, its texts, and the file with standard input if that is one of them."""
    kept = RunDirectory(out).data if mode is RunMode.RESUME else None
    with standard_input(() if config.data.prepared else config.data.text, out, kept) as spooled:
        yield *_read_corpus(config, out, mode, spooled), spooled


def _read_corpus(config: Config, out: Path, mode: RunMode, spooled: Path | None) -> tuple[Config, Corpus | None]:
    """Return the texts, and the configuration with its absolute paths: a run may be resumed in another directory.

    There are none if they have been prepared (`data.prepared`).
    """
    data = with_absolute_paths(config.data)
    sets = {name: absolute_text(path) for name, path in config.evaluation.sets.items()}
    evaluation = msgspec.structs.replace(config.evaluation, sets=sets)
    config = msgspec.structs.replace(config, data=data, evaluation=evaluation)
    if data.prepared:
        return config, None
    outputs = recorded_outputs(RunDirectory(out).data) if mode is RunMode.RESUME else []
    try:
        return config, read_corpus(config.data, excluded=[out, *outputs], standard_input=spooled, scratch=out)
    except TextError as error:
        if mode is not RunMode.RESUME:
            raise
        cause = error.cause or "the text of the run was moved, removed or protected"
        hint = "pass the same text with --resume --text FILE_OR_DIR"
        raise TextError(error.subject, error.expected, error.got, cause, hint) from error


def _report_left_out(text: Corpus, sources: Path) -> None:
    """Log the number of entries that are not part of the text and some of them, those that failed first."""
    if not text.left_out:
        return
    shown = sorted(text.left_out, key=lambda found: not found.failed)[:MOST_NAMED]
    lines = "".join(f"\n  {printable(f'{found.path}: {found.reason}')}" for found in shown)
    failed = sum(found.failed for found in text.left_out)
    logger.log(
        "WARNING" if failed else "INFO",
        "left out {:,} files or folders, of which {:,} could not be read; all are listed in {}{}",
        len(text.left_out), failed, sources, lines,
    )  # fmt: skip


def _report_skipped(text: Corpus, sources: Path) -> None:
    """Log the number of records that are not part of the text, and the first reasons."""
    invalid, empty = sum(found.invalid for found in text.skipped), sum(found.empty for found in text.skipped)
    if not invalid and not empty:
        return
    reasons = [reason for found in text.skipped for reason in found.reasons][:MOST_NAMED]
    lines = "".join(f"\n  {printable(reason)}" for reason in reasons)
    logger.log(
        "WARNING" if invalid else "INFO",
        "skipped {:,} invalid and {:,} empty records of {:,} files; they are listed by file in {}{}",
        invalid, empty, len(text.skipped), sources, lines,
    )  # fmt: skip


def prepared_texts(
    config: Config, text: Corpus | None, run: RunDirectory, mode: RunMode, available: int | None
) -> Dataset:
    """Return the dataset of the texts of a run, or that of `data.prepared` without them, and report it.

    `available` is as in `prepare`. Raises DataError for a resumed run with other texts, and the errors of `prepare`.
    """
    if text is None:
        data = open_prepared(config.data, config.model, run.data)
        logger.info(
            "text: that of {}, {:,} training and {:,} validation tokens, vocabulary {}",
            config.data.prepared, len(data.train), len(data.validation), data.tokenizer.vocab_size,
        )  # fmt: skip
        return data
    if mode is RunMode.RESUME:
        require_same_text(run.data, text)
    sources = write_sources(run.data, text)
    _report_left_out(text, sources)
    _report_skipped(text, sources)
    data = prepare(config.data, config.model, text, run.data, available)
    logger.info(
        "text: {}{}, {:,} {}, {:,} training and {:,} validation tokens, vocabulary {}",
        f"{len(text.files):,} files" if len(text.files) != 1 else "1 file",
        "" if text.documents is None else f", {text.documents:,} documents",
        text.characters, "characters" if text.text.largest_id is None else "token ids",
        len(data.train), len(data.validation), data.tokenizer.vocab_size,
    )  # fmt: skip
    return data
