"""The pipeline that encodes a corpus: reading, encoding and writing at the same time.

    read → encode (several threads, in order) → write

Guarantees: the token files are a function of the units and the tokenizer alone, at any number of threads and however
often the process was killed in between. The memory is that of the batches in flight, of which there are at most
threads + 4. A kill loses at most the batches since the last commit, which is at most `COMMIT_CHARACTERS` old.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from threadloom.pipeline import Graph, Sink, StageFailure, format_clock
from threadloom.stages.config import InputError
from threadloom.stages.console import PeriodicLog
from threadloom.stages.data.encoding.encoder import BatchEncoder, EncodedBatch
from threadloom.stages.data.encoding.journal import Journal, PreparationFolder
from threadloom.stages.data.encoding.split_files import SplitFiles
from threadloom.stages.data.encoding.units import Unit, batches
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.data.tokenizer import Tokenizer
from threadloom.stages.machine import thread_limit
from threadloom.stages.storage import explain_disk_full

COMMIT_CHARACTERS = 8 << 20
"""Characters after which the files are synced and the journal is written."""


def encoding_threads(tokenizer: Tokenizer) -> int:
    """Return the number of threads that encode.

    The library encodes on all cores without the GIL; one thread more than cores makes arrays of its ids meanwhile. The
    other tokenizers are NumPy, at the speed of memory.
    """
    return thread_limit().count + 1 if isinstance(tokenizer, LibraryTokenizer) else 1


def encode_units(
    units: Callable[[], Iterator[Unit]],
    paths: Sequence[str],
    tokenizer: Tokenizer,
    kind: np.dtype[Any],
    folder: PreparationFolder,
    characters: int,
    threads: int | None = None,
) -> list[SplitFiles]:
    """Return the complete files of each split in a folder, from where the last process left them.

    `paths` are the names of the splits' files. `units` yields the same units each time. Raises what it raises, and
    TokenizerError, OSError.
    """
    journal = folder.begin()
    files = _open(folder, paths, kind, journal)
    progress = _Progress(characters, journal.characters)
    try:
        todo = (batch for number, batch in enumerate(batches(units())) if number >= journal.batches)
        graph = Graph("preparation")
        source = graph.source("read", lambda: todo)
        encoded = graph.stage(
            "encode", BatchEncoder(tokenizer, kind), after=source, workers=threads or encoding_threads(tokenizer),
            ordered=True, capacity=1,
        )  # fmt: skip
        with closing(_results(graph, graph.sink("write", after=encoded, capacity=1))) as results:
            for batch in results:
                for part in batch.parts:
                    with explain_disk_full(files[part.split].path):
                        files[part.split].add(part)
                journal.batches += 1
                journal.characters += batch.characters
                progress.report(journal.characters)
                if journal.characters - progress.committed >= COMMIT_CHARACTERS:
                    _commit(folder, journal, files)
                    progress.committed = journal.characters
        for split in files:
            with explain_disk_full(split.path):
                split.finish()
    finally:
        for split in files:
            split.close()
    return files


def _commit(folder: PreparationFolder, journal: Journal, files: Sequence[SplitFiles]) -> None:
    """Make what has been written the point from which another process goes on."""
    with explain_disk_full(folder.path):
        journal.splits = [split.sync() for split in files]
        folder.commit(journal)


def _results(graph: Graph, sink: Sink[EncodedBatch]) -> Generator[EncodedBatch, None, None]:
    """Yield the results of a graph; an error that a user can correct is raised as it is."""
    try:
        with graph.start() as run:
            yield from run.items(sink)
    except StageFailure as failure:
        if isinstance(failure.__cause__, InputError | OSError):
            raise failure.__cause__ from None
        raise


def _open(folder: PreparationFolder, paths: Sequence[str], kind: np.dtype[Any], journal: Journal) -> list[SplitFiles]:
    """Return the files of the splits; a preparation whose files are damaged begins anew."""
    found: Sequence[Any] = journal.splits or [None] * len(paths)
    opened = list[SplitFiles]()
    try:
        for path, progress in zip(paths, found, strict=True):
            opened.append(SplitFiles(folder.path / path, kind, progress))
    except (OSError, ValueError):
        for split in opened:
            split.close()
        if not journal.splits:
            raise
        journal.batches = journal.characters = 0
        journal.splits = []
        return _open(folder, paths, kind, journal)
    return opened


class _Progress:
    """The progress that is logged from time to time, with the rate of this process."""

    def __init__(self, characters: int, done: int) -> None:
        self._characters, self._before = max(1, characters), done
        self._log = PeriodicLog()
        self.committed = done
        """Characters up to the last commit."""

    def report(self, done: int) -> None:
        """Log the share, the rate and the remaining time, if a line is due."""
        rate = (done - self._before) / max(self._log.seconds, 1e-9)
        left = max(0, self._characters - done) / rate if rate else 0.0
        self._log(
            "tokenising the text: {:.0%}, {} characters/s, {} left",
            min(1.0, done / self._characters), f"{rate:,.0f}", format_clock(left),
        )  # fmt: skip
