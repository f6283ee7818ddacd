"""The loss of a saved model on a text, as printed by `threadloom eval`."""

import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from threadloom.stages.config import ConfigError, InputError
from threadloom.stages.data import (
    DataError,
    EvaluationWindows,
    Text,
    TokenFile,
    Tokenizer,
    append_ids,
    evaluation_batches,
    prepared_order,
    read_text,
    reported,
    token_type,
)
from threadloom.stages.inference.model import Model, ModelError
from threadloom.stages.machine import thread_limit
from threadloom.stages.models import Geometry
from threadloom.stages.resolve import float32_settings
from threadloom.stages.step import ValidationLoss
from threadloom.stages.step.float32 import Float32Compute

_DECODED = 1 << 16
"""Ids that are decoded at a time."""


@dataclass(frozen=True)
class TextEvaluation:
    """Quality of a model's predictions of a text."""

    loss: float
    """Mean over the tokens, in nats."""
    tokens: int
    characters_per_token: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite for a loss above 709."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_character(self) -> float:
        """The loss in bits per character of the text."""
        return self.loss / math.log(2) / self.characters_per_token


def evaluate_text(run: Path, texts: tuple[str, ...], base: Path | None = None) -> TextEvaluation:
    """Return the loss of a run's newest model on texts, or on the run's validation split if there are none.

    A text shorter than the context is one window; `base` is as in `Model.open`. Raises `ConfigError` if the validation
    split is needed and missing, `DataError` for a text of fewer than two tokens, `ModelError` for a loss that is not
    finite, and the errors of `Model.open`.
    """
    begin = time.perf_counter()
    model = Model.open(run, base)
    if not texts:
        tokens = _validation_tokens(model, run)
        return _evaluation(model, tokens, decoded_characters(model.tokenizer, tokens), begin)
    with _text_tokens(model, texts) as (tokens, characters):
        return _evaluation(model, tokens, characters, begin)


def _evaluation(model: Model, tokens: TokenFile, characters: int, begin: float) -> TextEvaluation:
    sequences = _sequences_per_micro_batch((len(tokens) - 1) // tokens.context, max(1, 256 // tokens.context))
    windows = evaluation_batches(tokens, batch_size=sequences, micro_batch=sequences, batches=len(tokens))
    with float32_settings():
        loss = _mean_loss(model, windows, replace(model.geometry, context=tokens.context), sequences)
    if not math.isfinite(loss):
        raise ModelError(
            str(model.path),
            expected="a model with a finite loss",
            got=f"a loss of {loss}",
            cause="its weights contain NaN or infinite numbers: the training diverged, or the file is damaged",
            hint="evaluate an earlier checkpoint, or train again with a lower optimizer.lr",
        )
    return TextEvaluation(loss, windows.tokens, characters / len(tokens), time.perf_counter() - begin)


def _sequences_per_micro_batch(windows: int, most: int) -> int:
    """Return the size, from half of `most` to `most`, of which whole micro-batches cover the most windows."""
    most = max(1, min(most, windows))
    return max(range(-(-most // 2), most + 1), key=lambda size: (windows // size * size, size))


def _mean_loss(model: Model, windows: EvaluationWindows, geometry: Geometry, sequences: int) -> float:
    """Return the mean loss of windows, computed by the threads of this process.

    The sum of the micro-batches' losses is rounded once, so it does not depend on the number of threads.
    """
    count = min(thread_limit().count, windows.micro_batches)
    evaluators = [ValidationLoss(Float32Compute(geometry, sequences)) for _ in range(count)]

    def losses(first: int) -> list[float]:
        return evaluators[first].losses(model, windows, range(first, windows.micro_batches, count))

    with ThreadPoolExecutor(count, "evaluate") as pool:
        try:
            return math.fsum(chain.from_iterable(pool.map(losses, range(count)))) / windows.tokens
        except BaseException:  # Ctrl-C, too: the pool waits for its threads
            for evaluator in evaluators:
                evaluator.abort()
            raise


@contextmanager
def _text_tokens(model: Model, texts: tuple[str, ...]) -> Iterator[tuple[TokenFile, int]]:
    """Yield the tokens of texts, in a temporary file that has no name, and the number of characters."""
    text = read_text(texts)
    with ExitStack() as files:
        try:
            file = files.enter_context(tempfile.TemporaryFile(prefix="threadloom-"))
            ids = _mapped_ids(file, model, text)
        except OSError as error:
            raise DataError(
                ", ".join(texts),
                expected="a temporary file for the tokens of the text",
                got=error.strerror or str(error),
                hint="set TMPDIR to a writable folder on a disk with more space",
            ) from error
        if len(ids) < 2:
            expected = "a text of at least two tokens, one to predict from the other"
            raise DataError(texts[0], expected=expected, got=f"{len(ids)}")
        context = min(model.geometry.context, len(ids) - 1)
        yield TokenFile(ids, model.geometry.vocabulary, context, Path(texts[0])), text.characters


def _mapped_ids(file: BinaryIO, model: Model, text: Text) -> NDArray[Any]:
    """Write the ids of a text to an empty file, and return them as a read-only map of the file (N,)."""
    # Wide enough for an id that the model has no row for, which `TokenFile` refuses.
    kind = token_type(max(model.geometry.vocabulary, model.tokenizer.vocab_size))
    chunks = reported(text.chunks(), text.characters, "tokenising the text")
    count = append_ids(file, model.tokenizer.encode_chunks(chunks), kind)
    file.flush()
    return np.asarray(np.memmap(file, kind, "r", shape=(count,))) if count else np.zeros(0, kind)


def _validation_tokens(model: Model, run: Path) -> TokenFile:
    path = run / "data" / "validation.npy"
    if not path.exists():
        raise ConfigError(
            str(path),
            expected="the validation tokens of a run",
            got="no such file",
            cause="the path is not a run directory, or its data were removed",
            hint="pass a text with --text FILE_OR_DIR",
        )
    return TokenFile.open(path, model.geometry.vocabulary, model.geometry.context, prepared_order(path.parent))


def decoded_characters(tokenizer: Tokenizer, tokens: TokenFile) -> int:
    """Return the number of characters of the tokens' text, which is decoded in parts of whole characters."""
    count = start = 0
    try:
        while start < len(tokens):
            decode = tokenizer.decode_following if start else tokenizer.decode
            for end in range(start + _DECODED, start + _DECODED + 4):  # a character has at most 4 bytes, thus tokens
                text = decode(tokens.tokenizer_ids(start, end))
                if not text.endswith("\ufffd"):
                    break
            count, start = count + len(text), end
    except InputError as error:
        raise DataError(
            str(tokens.path),
            expected=error.expected,
            got=f"{error.got} as {error.subject}",
            cause="the file is damaged, or belongs to another tokenizer",
            hint="pass a text with --text FILE_OR_DIR, or resume the run, which rebuilds the file from its text",
        ) from error
    return count
