"""The sequences that a training or an evaluation of a run reads, or those of a configuration with a text."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threadloom.stages.config import BatchSizes, Config
from threadloom.stages.data import (
    TOKENIZER_FILE,
    Mixture,
    TokenBatches,
    TokenFile,
    Tokenizer,
    evaluation_batches,
    load_tokenizer,
    prepare,
    prepared_mixture,
    prepared_order,
    read_corpus,
)
from threadloom.stages.resolve import load_config
from threadloom.stages.storage import RunDirectory
from threadloom.stages.tools.show_data.segments import Rows, ShownSequence, segments_of


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
            tokenizer = prepare(config.data, config.model, read_corpus(config.data), Path(folder)).tokenizer
            yield cls._opened(Path(folder), tokenizer, config)

    def training(self, update: int, count: int) -> Iterator[ShownSequence]:
        """Yield the first sequences of an update."""
        sequences = self.config.batch_size * self.config.gradient_accumulation_steps
        sizes = BatchSizes(sequences, 1)  # the size of micro-batches does not change a sequence
        source = TokenBatches(self.train, sizes, self.config.seed, None, self.config.data.shuffle, self.mixture)
        for number in range(min(count, sequences)):
            start = source.start(update, number)
            yield self._shown(self.train, start, f"update {update:,}, sequence {number:,}")

    def evaluated(self, count: int) -> Iterator[ShownSequence]:
        """Yield sequences that an evaluation reads."""
        windows = evaluation_batches(self.validation, batch_size=count, micro_batch=1, batches=1)
        for number, start in enumerate(windows.starts.tolist()):
            yield self._shown(self.validation, start, f"validation, sequence {number:,}")

    def _shown(self, tokens: TokenFile, start: int, name: str) -> ShownSequence:
        context = tokens.context
        ids, targets = np.empty(context, np.int32), np.empty(context, np.int32)
        tokens.read(start, ids, targets)
        borders: frozenset[int] = frozenset()
        if tokens.documents is not None:
            low, high = np.searchsorted(tokens.documents, (start + 1, start + context + 1))
            borders = frozenset((tokens.documents[low:high] - start).tolist())
        rows = Rows(ids, targets, borders, context)
        special = frozenset(self.tokenizer.special_tokens.values())
        segments = segments_of(rows, self.tokenizer, special)
        counted = sum(segment.tokens for segment in segments if segment.counts)
        title = f"{name}: tokens {start:,} to {start + context:,}, {counted:,} of {context:,} targets count"
        return ShownSequence(title, segments)
