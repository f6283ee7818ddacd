"""The loss of a saved model on a text, as printed by `threadloom eval`."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from threadloom.stages.config import ConfigError, ConversationLayout, DataConfig, InvalidRecords, TokenizerKind
from threadloom.stages.console import PeriodicLog
from threadloom.stages.data import (
    IGNORED_TARGET,
    STANDARD_INPUT,
    DataError,
    Reading,
    absolute_text,
    prepared_special_tokens,
    reading_of,
)
from threadloom.stages.inference.evaluated_text import (
    EvaluatedTokens,
    TextSize,
    text_tokens,
    validation_tokens,
)
from threadloom.stages.inference.model import Model, ModelError
from threadloom.stages.inference.sliding_windows import Window, sliding_windows
from threadloom.stages.inference.token_scores import ScoredTokens, score_tokens
from threadloom.stages.storage import RunDirectory

_BLOCK = 1 << 18
"""Tokens whose windows are scored at a time, about."""


@dataclass(frozen=True)
class TextOptions:
    """How a text is read, and cut into documents and windows."""

    stride: int | None = None
    """Tokens by which a window is moved; None: the context, so that windows do not overlap."""
    by_file: bool = False
    """True: each file of plain text is a document, which is scored by itself, and so is each document of a validation
    split that has some; False: they are one text."""
    field: str = "text"
    """The field of a record that has its text."""
    invalid: InvalidRecords = InvalidRecords.REFUSE
    """Treatment of records without a text."""

    conversations: ConversationLayout | None = None
    """Layout of all records, which are conversations; None: recognised from the keys of each record without `field`."""
    chat_template: str = ""
    """The template that writes conversations, as `data.chat_template`. Empty: that of the model."""

    def reading(self, model: Model) -> Reading:
        """Return how records and files become documents for a model."""
        data = DataConfig(
            field=self.field,
            invalid=self.invalid,
            conversations=self.conversations,
            chat_template=self.chat_template,
            tokenizer=TokenizerKind.PRETRAINED,
            tokenizer_path=absolute_text(model.tokenizer_folder),
        )
        return replace(reading_of(data), whole_files=self.by_file)


@dataclass(frozen=True)
class Loss:
    """Quality of a model's predictions of a text."""

    nats: float
    """Sum over the tokens that are scored of the negative logarithm of their probability."""
    tokens: int
    """Number of tokens that are scored."""
    size: TextSize
    """Size of their text."""

    @property
    def loss(self) -> float:
        """Mean over the tokens, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite for a loss above 709."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of the text in UTF-8, which compares models with any tokenizers."""
        return self.nats / math.log(2) / max(1, self.size.bytes)

    @property
    def bits_per_character(self) -> float:
        """The loss in bits per character of the text."""
        return self.nats / math.log(2) / max(1, self.size.characters)

    @property
    def characters_per_token(self) -> float:
        """Mean length of the tokens."""
        return self.size.characters / self.tokens


@dataclass(frozen=True)
class DocumentLoss(Loss):
    """The loss on one document."""

    name: str = ""


@dataclass(frozen=True)
class TextEvaluation(Loss):
    """The loss on all documents of a text."""

    context: int = 0
    stride: int = 0
    seconds: float = 0.0
    documents: tuple[DocumentLoss, ...] = field(default=())


def evaluate_text(
    run: Path,
    texts: tuple[str, ...],
    base: Path | None = None,
    options: TextOptions | None = None,
    *,
    average: bool = False,
) -> TextEvaluation:
    """Return the loss of a run's newest model on texts, or on the run's validation split if there are none.

    A dash among the texts is standard input. Of conversations, only the tokens that count in a training are scored.

    Each token is scored once (`sliding_windows`); `base` and `average` are as in `Model.open`. Raises `ConfigError` for
    a stride larger than the context, and if the validation split is needed and missing, `DataError` for a text of fewer
    than two tokens, or of none that count, `ModelError` for a loss that is not finite, and the errors of `Model.open`.
    """
    begin = time.perf_counter()
    chosen = options or TextOptions()
    if texts.count(STANDARD_INPUT) > 1:
        raise ConfigError("--text", expected="standard input (-) once", got="several times")
    model = Model.open(run, base, average=average)
    stride = _checked_stride(chosen.stride, model.geometry.context)
    if texts:
        special = prepared_special_tokens(RunDirectory(run).data)
        reader = replace(model, tokenizer=model.tokenizer.with_special_tokens(special))
        with text_tokens(reader, texts, chosen.reading(model)) as tokens:
            losses = document_losses(model, tokens, stride)
    else:
        losses = document_losses(model, validation_tokens(model, run, by_document=chosen.by_file), stride)
    return TextEvaluation(
        math.fsum(document.nats for document in losses),
        sum(document.tokens for document in losses),
        TextSize(*(sum(sizes) for sizes in zip(*(document.size for document in losses), strict=True))),
        model.geometry.context,
        stride,
        time.perf_counter() - begin,
        losses,
    )


def document_losses(model: Model, tokens: EvaluatedTokens, stride: int) -> tuple[DocumentLoss, ...]:
    """Return the loss on each document; raises `ModelError` for one that is not finite, and `DataError`."""
    sums, counts = [list[float]() for _ in tokens.documents], [0] * len(tokens.documents)
    total = sum(document.tokens for document in tokens.documents)
    progress, done = PeriodicLog(), 0
    windows = _windows(model, tokens, stride)
    while block := list(_block(windows)):
        requests = [_request(tokens, window) for _, window in block]
        for (number, window), request, scores in zip(block, requests, score_tokens(model, requests), strict=True):
            sums[number].append(-math.fsum(scores.log_probabilities))
            counts[number] += int(np.count_nonzero(request.targets != IGNORED_TARGET))
            done += window.scored
        progress("evaluating: {:.0%}", done / total)
    losses = tuple(
        DocumentLoss(math.fsum(parts), count, document.size, document.name)
        for parts, count, document in zip(sums, counts, tokens.documents, strict=True)
        if count
    )
    if not losses:
        raise DataError(
            str(tokens.file.path),
            expected="tokens that count in the loss",
            got=f"none of {len(tokens.file):,}",
            hint="use a larger text; of a run, hold out more for validation, with a smaller data.train_fraction",
        )
    for loss in losses:
        if not math.isfinite(loss.nats):
            raise ModelError(
                str(model.path),
                expected="a model with a finite loss",
                got=f"a loss of {loss.loss}",
                cause="its weights contain NaN or infinite numbers: the training diverged, or the file is damaged",
                hint="evaluate an earlier checkpoint, or train again with a lower optimizer.lr",
            )
    return losses


def _windows(model: Model, tokens: EvaluatedTokens, stride: int) -> Iterator[tuple[int, Window]]:
    """Yield the windows of all documents, at their positions in the file, each with the number of its document."""
    for number, document in enumerate(tokens.documents):
        for window in sliding_windows(document.tokens, model.geometry.context, stride, document.given):
            yield number, window._replace(start=document.start + window.start)


def _block(windows: Iterator[tuple[int, Window]]) -> Iterator[tuple[int, Window]]:
    left = _BLOCK
    for number, window in windows:
        yield number, window
        left -= window.inputs
        if left <= 0:
            return


def _request(tokens: EvaluatedTokens, window: Window) -> ScoredTokens:
    ids, targets = np.empty((2, window.inputs), np.int32)
    tokens.file.with_context(window.inputs).read(window.start, ids, targets)
    return ScoredTokens(ids, targets[window.inputs - window.scored :])


def _checked_stride(stride: int | None, context: int) -> int:
    if stride is not None and not 1 <= stride <= context:
        raise ConfigError(
            "--stride",
            expected=f"a number of tokens from 1 to {context}, the context of the model",
            got=str(stride),
            cause="a larger one would leave tokens out",
        )
    return context if stride is None else stride
