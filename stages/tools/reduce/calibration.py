"""Measurements of a model on a text: the metric of its head, frequencies of tokens, its loss with other weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threadloom.kernels import Weights
from threadloom.stages.config import ConfigError
from threadloom.stages.data import (
    EvaluationWindows,
    TokenFile,
    evaluation_batches,
    prepared_order,
    read_text,
    token_type,
)
from threadloom.stages.inference import Model
from threadloom.stages.resolve import float32_settings
from threadloom.stages.step import ValidationLoss
from threadloom.stages.step.float32 import Float32Compute

Doubles = NDArray[np.float64]

_DAMPING = 0.1
"""Share of the mean of the metric's diagonal that is added to its diagonal.

GPTQ adds a hundredth. Here the rounded rows are also the input of the model, for which every direction counts.
"""
_HELD_OUT = 4
"""One part in so many of a text is held out."""
_ROWS = 256
"""Tokens of a micro-batch, about."""


@dataclass(frozen=True)
class Calibration:
    """What is measured once of a model."""

    metric: Doubles
    """H (C, C): the mean of h hᵀ over the hidden states that the output projection reads, damped."""
    frequency: Doubles
    """Tokens of the text by id, plus one each (V,)."""
    tokens: int


class Measured:
    """A model with the windows that it is measured on and those that are held out."""

    def __init__(self, model: Model, texts: tuple[str, ...], run: Path, tokens: int) -> None:
        """Raises `ConfigError` for a model other than GPT-2 and for a missing text, and the errors of reading one."""
        if not isinstance(model.weights, Weights):
            raise ConfigError(
                str(model.path),
                expected="a GPT-2, whose token embedding is also its output projection",
                got=f"a model of the architecture {model.geometry.architecture}",
                hint="write it with threadloom export --dtype bf16, or as a .gguf file with --dtype q8_0",
            )
        self.model, self.weights = model, model.weights
        files = _split(model, texts) if texts else _files_of(model, run)
        context = min(model.geometry.context, *(len(file) - 1 for file in files))
        sequences = max(1, _ROWS // context)
        batches = max(1, tokens // (sequences * context))
        self.windows, self.held_out = (
            evaluation_batches(
                file.with_context(context),
                batch_size=sequences,
                micro_batch=sequences,
                batches=batches,
            )
            for file in files
        )
        self._compute = Float32Compute(replace(model.geometry, context=context), sequences)

    def calibrate(self) -> Calibration:
        """Return the metric and the frequencies."""
        channels, windows = self.model.geometry.channels, self.windows
        total = np.zeros((channels, channels))
        counts = np.ones(self.model.geometry.vocabulary)
        slot = self._compute.memory.allocate_evaluation_slot()
        logits = np.empty(self._compute.memory.logits_shape, np.float32)
        with float32_settings():
            for micro in range(windows.micro_batches):
                windows.fill(0, micro, slot.ids, slot.targets)
                self._compute.embed(self.model, slot)
                self._compute.forward(self.model, slot)
                self._compute.loss(self.model, slot, logits)
                h = slot.activations.h.astype(np.float64)  # what the loss has multiplied with the embedding
                total += h.T @ h
                counts += np.bincount(slot.ids, minlength=len(counts))
        total /= windows.tokens
        total += _DAMPING * np.trace(total) / channels * np.eye(channels)
        return Calibration(total, counts, windows.tokens)

    def loss(self, embedding: NDArray[np.float32]) -> float:
        """Return the mean loss of the held-out windows with another token embedding."""
        return self._mean_loss(replace(self.model, weights=self.weights._replace(wte=embedding)))

    def _mean_loss(self, model: Any) -> float:
        with float32_settings():
            return ValidationLoss(self._compute).mean_loss(model, self.held_out)

    @property
    def held_out_tokens(self) -> int:
        """Number of target tokens of the loss."""
        windows: EvaluationWindows = self.held_out
        return windows.tokens


def _split(model: Model, texts: tuple[str, ...]) -> tuple[TokenFile, TokenFile]:
    """Return the tokens of texts in two parts."""
    vocabulary, path = model.geometry.vocabulary, Path(texts[0])
    parts = [np.zeros(0, np.int32), *model.tokenizer.encode_chunks(read_text(texts).chunks())]
    ids = np.concatenate(parts).astype(token_type(max(vocabulary, model.tokenizer.vocab_size)))
    end = len(ids) - len(ids) // _HELD_OUT
    return TokenFile(ids[:end], vocabulary, 1, path), TokenFile(ids[end:], vocabulary, 1, path)


def _files_of(model: Model, run: Path) -> tuple[TokenFile, TokenFile]:
    """Return the training tokens and the validation tokens of a run."""
    paths = [run / "data" / name for name in ("train.npy", "validation.npy")]
    if missing := [path for path in paths if not path.exists()]:
        raise ConfigError(
            str(missing[0]),
            expected="the tokens of a run, to measure on",
            got="no such file",
            cause="the path is not a run directory, or its data were removed",
            hint="pass a text with --text FILE_OR_DIR",
        )
    order = prepared_order(run / "data")
    train, validation = (TokenFile.open(path, model.geometry.vocabulary, 1, order) for path in paths)
    return train, validation
