"""Standard input as a text: it is written to a file, since a text is read more than once and again at a resume."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from threadloom.stages.data.corpus import Corpus
from threadloom.stages.data.sources.registry import format_of
from threadloom.stages.data.text import Text
from threadloom.stages.data.text_decoding import file_content
from threadloom.stages.data.text_format import TextError
from threadloom.stages.data.text_paths import STANDARD_INPUT
from threadloom.stages.storage import explain_disk_full

NAME = "standard-input"
"""Name of the file, without its suffix, which tells its format."""

_FIRST_LINE = 1 << 20
"""Maximum number of bytes of the line from which JSON Lines are recognised."""


@contextlib.contextmanager
def standard_input(texts: Sequence[str], beside: Path, kept: Path | None) -> Iterator[Path | None]:
    """Yield the file with standard input if one of the texts is a dash: a new one, or that in the directory `kept`.

    A new file is near the path `beside`, and is removed at the end of the block unless it has been moved. Raises
    TextError for a terminal and for a run without the file, DiskFullError.
    """
    if STANDARD_INPUT not in texts:
        yield None
    elif kept is not None:
        yield _kept(kept)
    else:
        folder = next(path for path in beside.absolute().parents if path.is_dir())
        with TemporaryDirectory(prefix=".threadloom-", dir=folder, ignore_cleanup_errors=True) as temporary:
            yield _spooled(Path(temporary))


def keep_standard_input(corpus: Corpus, file: Path | None, directory: Path) -> Corpus:
    """Move the file with standard input to a directory, and return the texts that are read from there."""
    if file is None or file.parent == directory:
        return corpus
    target = directory / file.name
    with explain_disk_full(target):
        shutil.move(file, target)
    with contextlib.suppress(OSError):  # empty now: a run that is killed leaves nothing beside its directory
        file.parent.rmdir()

    def moved(text: Text) -> Text:
        return replace(
            text, files=tuple(found._replace(path=target) if found.path == file else found for found in text.files)
        )

    return replace(corpus, sources=tuple(moved(text) if isinstance(text, Text) else text for text in corpus.sources))


def _kept(directory: Path) -> Path:
    found = sorted(directory.glob(f"{NAME}.*"))
    if not found:
        raise TextError(
            str(directory / NAME),
            expected="the standard input that the run was started with",
            got="no such file",
            cause="it was removed from the run directory",
            hint="pass the same text with --resume --text FILE_OR_DIR",
        )
    return found[0]


def _spooled(folder: Path) -> Path:
    """Write standard input to a file with the suffix of its format; return its path."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.isatty():
        raise TextError(
            STANDARD_INPUT,
            expected="a text on standard input",
            got="a terminal" if stream is not None else "none",
            hint="pipe a text into the command, as in `zcat corpus.gz | threadloom train --text - --out RUN`",
        )
    path = folder / NAME
    with explain_disk_full(path), path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    named = path.with_suffix(_suffix(path))
    path.rename(named)
    return named


def _suffix(path: Path) -> str:
    """Return the suffix of the format that the content of a file has."""
    if (found := format_of(path)) is not None:
        return found.suffixes[0]
    try:
        return ".jsonl" if isinstance(json.loads(_first_line(path)), dict) else ".txt"
    except (ValueError, RecursionError):  # also for a file that cannot be decompressed, which is reported later
        return ".txt"


def _first_line(path: Path) -> bytes:
    line = b""
    for piece in file_content(path):
        line += piece
        if b"\n" in line.lstrip() or len(line) > _FIRST_LINE:
            break
    return line.lstrip().partition(b"\n")[0][:_FIRST_LINE]
