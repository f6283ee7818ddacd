"""The sequences that a training or an evaluation of a run reads, or those of a configuration with a text."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import BatchSizes, Config
from threadloom.stages.data import (
    IGNORED_TARGET,
    TOKENIZER_FILE,
    EvaluationChoice,
    Mixture,
    PackedSequences,
    TokenBatches,
    TokenFile,
    Tokenizer,
    load_tokenizer,
    prepare,
    prepared_mixture,
    prepared_order,
    read_corpus,
    sequences_of,
    standard_input,
)
from threadloom.stages.resolve import load_config
from threadloom.stages.storage import RunDirectory
from threadloom.stages.tools.show_data.segments import BORDER, Rows, Segment, ShownSequence, padding, segments_of


@dataclass(frozen=True)
class ShownData:
    """Token files with the settings by which sequences of them are chosen."""

    tokenizer: Tokenizer
    train: TokenFile
    validation: TokenFile
    config: Config
    mixture: Mixture | None

    @classmethod
    def of_run(cls, run: RunDirectory) -> "ShownData":
        """Return the data of a run; raises ConfigError, TokenizerError, DataError."""
        config = load_config(run.config.parent)
        tokenizer = load_tokenizer(run.data / TOKENIZER_FILE)
        return cls._opened(run.data, tokenizer, config)

    @classmethod
    def _opened(cls, folder: Path, tokenizer: Tokenizer, config: Config) -> "ShownData":
        order = prepared_order(folder)
        train, validation = (
            TokenFile.open(folder / f"{split}.npy", tokenizer.vocab_size, config.model.context, order)
            for split in ("train", "validation")
        )
        return cls(tokenizer, train, validation, config, prepared_mixture(folder, config.data))

    @classmethod
    @contextmanager
    def of_config(cls, config: Config) -> Iterator["ShownData"]:
        """Yield the data of a configuration, prepared in a directory that is removed with the block."""
        with tempfile.TemporaryDirectory(prefix="threadloom-") as folder:
            with standard_input(config.data.text, Path(folder) / "text", None) as spooled:
                corpus = read_corpus(config.data, standard_input=spooled, scratch=Path(folder))
                tokenizer = prepare(config.data, config.model, corpus, Path(folder)).tokenizer
            yield cls._opened(Path(folder), tokenizer, config)

    def training(self, update: int, count: int) -> Iterator[ShownSequence]:
        """Yield the first sequences of an update."""
        settings = self.config.data
        sizes = BatchSizes(self.config.sequences, 1)  # the size of micro-batches does not change a sequence
        sequences = sequences_of(settings, self.train, self.mixture)
        source = TokenBatches(sequences, sizes, self.config.seed, None, settings.shuffle, self.mixture)
        for number in range(min(count, sizes.sequences)):
            yield self._shown(sequences, source.start(update, number), f"update {update:,}, sequence {number:,}")

    def evaluated(self, count: int) -> Iterator[ShownSequence]:
        """Yield sequences that an evaluation reads."""
        starts = EvaluationChoice(self.config.data, self.validation, count, 1)(1).starts
        sequences = sequences_of(self.config.data, self.validation)
        for number, start in enumerate(starts.tolist()):
            yield self._shown(sequences, start, f"validation, sequence {number:,}")

    def _shown(self, sequences: TokenFile | PackedSequences, start: int, name: str) -> ShownSequence:
        context = sequences.context
        ids, targets = np.empty(context, np.int32), np.empty(context, np.int32)
        sequences.read(start, ids, targets)
        parts = list(_parts(sequences, start, ids, targets))
        special = frozenset(self.tokenizer.special_tokens.values())
        segments: list[Segment] = []
        for part in parts:
            segments += [BORDER] * bool(segments)
            segments += segments_of(part, self.tokenizer, special)
        segments += padding(context - sum(len(part.ids) for part in parts))
        counted = int((targets != IGNORED_TARGET).sum())
        place = f"tokens {start:,} to {start + context:,}" if isinstance(sequences, TokenFile) else f"pack {start:,}"
        return ShownSequence(f"{name}: {place}, {counted:,} of {context:,} targets count", tuple(segments))


def _parts(
    sequences: TokenFile | PackedSequences, start: int, ids: NDArray[np.int32], targets: NDArray[np.int32]
) -> Iterator[Rows]:
    """Yield the rows of a sequence, in parts within which each input is the target before it."""
    if isinstance(sequences, TokenFile):
        borders = np.zeros(0, np.int64)
        if sequences.documents is not None:
            low, high = np.searchsorted(sequences.documents, (start + 1, start + len(ids) + 1))
            borders = sequences.documents[low:high] - start
        yield Rows(ids, targets, frozenset(borders.tolist()))
        return
    lengths = sequences.packed.pieces(start).lengths
    if not sequences.packed.bordered:
        rows = int(lengths.sum()) - 1
        yield Rows(ids[:rows], targets[:rows], frozenset(np.cumsum(lengths)[:-1].tolist()))
        return
    ends = np.cumsum(lengths - 1)  # the last token of a piece is a target only
    for begin, end in pairwise([0, *ends.tolist()]):
        yield Rows(ids[begin:end], targets[begin:end], frozenset())
