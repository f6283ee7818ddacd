"""The batches that the settings of the data ask for: of windows or packed documents, with borders or without."""

import numpy as np

from threadloom.stages.config import BatchSizes, DataConfig, Packing
from threadloom.stages.data.batches import EvaluationWindows, TokenBatches, evaluation_batches
from threadloom.stages.data.bordered_tokens import BorderedTokenFile
from threadloom.stages.data.dataset import Dataset
from threadloom.stages.data.mixture import Mixture
from threadloom.stages.data.packed_sequences import PackedSequences
from threadloom.stages.data.token_file import TokenFile


def training_batches(settings: DataConfig, data: Dataset, sizes: BatchSizes, seed: int) -> TokenBatches:
    """Return the training batches of a dataset; raises ConfigError for settings that need documents, without any.

    Raises DataError for a source of a mixture that is too short.
    """
    sequences = sequences_of(settings, data.train, data.mixture)
    return TokenBatches(sequences, sizes, seed, data.offsets, settings.shuffle, data.mixture)


def sequences_of(
    settings: DataConfig, tokens: TokenFile, mixture: Mixture | None = None
) -> TokenFile | PackedSequences:
    """Return the sequences of a token file; raises ConfigError for settings that need documents, without any."""
    return _packed(settings, tokens, mixture) or _windows(settings, tokens)


class EvaluationChoice:
    """Chooses the sequences of evaluations of a token file, whose documents are packed once."""

    def __init__(self, settings: DataConfig, tokens: TokenFile, batch_size: int, micro_batch: int) -> None:
        """Raises ConfigError for settings that need documents, without any."""
        self._batch_size, self._micro_batch = batch_size, micro_batch
        self._packed, self._tokens = _packed(settings, tokens), tokens
        if self._packed is None:
            self._tokens = _windows(settings, tokens)

    def __call__(self, batches: int) -> EvaluationWindows:
        """Return the sequences of an evaluation of at most `batches` batches, evenly spaced.

        If fewer packed sequences exist than a micro-batch has, some are evaluated more than once.
        """
        size = self._micro_batch
        if self._packed is None:
            return evaluation_batches(self._tokens, batch_size=self._batch_size, micro_batch=size, batches=batches)
        available = self._packed.starts
        count = min(available, batches * self._batch_size) // size * size or size
        return EvaluationWindows(self._packed, np.arange(count, dtype=np.int64) * available // count, size)


def _packed(settings: DataConfig, tokens: TokenFile, mixture: Mixture | None = None) -> PackedSequences | None:
    if settings.packing is Packing.WINDOWS:
        return None
    sources = [positions.start for positions in mixture.ranges] if mixture else [0]
    return PackedSequences(tokens, bordered=settings.bordered, sources=sources)


def _windows(settings: DataConfig, tokens: TokenFile) -> TokenFile:
    return BorderedTokenFile(tokens) if settings.bordered else tokens
