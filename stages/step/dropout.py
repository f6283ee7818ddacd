"""Dropout in training (Srivastava et al., 2014), in every number format: of the input embeddings, and in the blocks."""

import numpy as np

from threadloom.kernels import Floats
from threadloom.kernels.common import EMBEDDING_DROPOUT, Dropout, DropoutRates, dropout_forward
from threadloom.stages.config import DropoutConfig
from threadloom.stages.memory import MicroBatchSlot
from threadloom.stages.models import Geometry


def block_rates(config: DropoutConfig) -> DropoutRates:
    """Return the probabilities of dropout in the blocks."""
    return DropoutRates(config.residual, config.attention)


def has_dropout(geometry: Geometry, config: DropoutConfig) -> bool:
    """Return True if a training drops elements, of embeddings, in the blocks or of the inputs of adapters."""
    return config.drops or (geometry.lora is not None and geometry.lora.dropout > 0)


class EmbeddingDropout:
    """Drops elements of the embeddings and of their gradient, by the same mask. Stateless."""

    def __init__(self, probability: float) -> None:
        self._probability = probability
        if probability:
            nothing = np.empty((0, 1), np.float32)  # compiled now, and not in the middle of a run
            dropout_forward(nothing, Dropout(probability, np.ones(1, np.uint64), EMBEDDING_DROPOUT), nothing)

    def drop(self, rows: Floats, slot: MicroBatchSlot) -> None:
        """Drop elements of `rows` (R, C) in place, unless the slot is that of an evaluation."""
        if self._probability and slot.dropout_key[0]:
            dropout_forward(rows, Dropout(self._probability, slot.dropout_key, EMBEDDING_DROPOUT), rows)
