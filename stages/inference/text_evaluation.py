"""The loss of a saved model on a text, as printed by `threadloom eval`."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from threadloom.stages.config import ConfigError, InputError
from threadloom.stages.data import DataError, EvaluationWindows, TokenFile, evaluation_batches, read_text, token_type
from threadloom.stages.inference.model import Model, ModelError
from threadloom.stages.machine import thread_limit
from threadloom.stages.models import Geometry
from threadloom.stages.resolve import float32_settings
from threadloom.stages.step import ValidationLoss
from threadloom.stages.step.float32 import Float32Compute


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


def evaluate_text(run: Path, texts: tuple[str, ...]) -> TextEvaluation:
    """Return the loss of a run's newest model on texts, or on the run's validation split if there are none.

    A text shorter than the context is one window. Raises `ConfigError` if the validation split is needed and missing,
    `DataError` for a text of fewer than two tokens, `ModelError` for a loss that is not finite, and the errors of
    `Model.open`.
    """
    begin = time.perf_counter()
    model = Model.open(run)
    tokens, characters = _text_tokens(model, texts) if texts else _validation_tokens(model, run)
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


def _text_tokens(model: Model, texts: tuple[str, ...]) -> tuple[TokenFile, int]:
    text = read_text(texts).text
    ids = model.tokenizer.encode(text).astype(token_type(model.geometry.vocabulary))
    if len(ids) < 2:
        raise DataError(
            texts[0], expected="a text of at least two tokens, one to predict from the other", got=f"{len(ids)}"
        )
    context = min(model.geometry.context, len(ids) - 1)
    return TokenFile(ids, model.geometry.vocabulary, context, Path(texts[0])), len(text)


def _validation_tokens(model: Model, run: Path) -> tuple[TokenFile, int]:
    path = run / "data" / "validation.npy"
    if not path.exists():
        raise ConfigError(
            str(path),
            expected="the validation tokens of a run",
            got="no such file",
            cause="the path is not a run directory, or its data were removed",
            hint="pass a text with --text FILE_OR_DIR",
        )
    tokens = TokenFile.open(path, model.geometry.vocabulary, model.geometry.context)
    try:
        return tokens, len(model.tokenizer.decode(tokens.ids))
    except InputError as error:
        raise DataError(
            str(path),
            expected=error.expected,
            got=f"{error.got} as {error.subject}",
            cause="the file is damaged, or belongs to another tokenizer",
            hint="pass a text with --text FILE_OR_DIR, or resume the run, which rebuilds the file from its text",
        ) from error
