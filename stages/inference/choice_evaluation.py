"""Multiple-choice questions, answered by the choice of the largest likelihood, as lm-evaluation-harness scores them."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from threadloom.stages.config import InputError, InvalidRecords, SpecialTokens
from threadloom.stages.console import PeriodicLog
from threadloom.stages.data import DataError
from threadloom.stages.inference.choice_records import Question, QuestionError, read_questions
from threadloom.stages.inference.continuations import Continuation, Likelihood, encode_continuation, likelihoods
from threadloom.stages.inference.model import Model, ModelError

_BLOCK = 1 << 10
"""Questions that are scored at a time."""


@dataclass(frozen=True)
class ChoiceOptions:
    """How questions are read and put to a model."""

    delimiter: str = " "
    """Text between the prompt and each choice."""
    invalid: InvalidRecords = InvalidRecords.REFUSE
    """Treatment of records that are no questions."""
    special: SpecialTokens = SpecialTokens.TEXT
    """Treatment of special tokens in prompts and choices."""


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """The likelihoods of the choices of a question. Of equal ones the first is chosen."""

    question: Question
    likelihoods: tuple[Likelihood, ...]

    @property
    def chosen(self) -> int:
        """The choice with the largest likelihood."""
        return self._largest(lambda _: 1)

    @property
    def chosen_norm(self) -> int:
        """The choice with the largest log-likelihood per character of the choice."""
        return self._largest(len)

    @property
    def chosen_bytes(self) -> int:
        """The choice with the largest log-likelihood per byte of the choice in UTF-8."""
        return self._largest(lambda choice: len(choice.encode()))

    def _largest(self, length: Callable[[str], int]) -> int:
        found = zip(self.likelihoods, self.question.choices, strict=True)
        return int(np.argmax([likelihood.log_likelihood / length(choice) for likelihood, choice in found]))


class Accuracy(NamedTuple):
    """A share of right answers."""

    mean: float
    error: float
    """Standard error of the mean; NaN for a single question."""


@dataclass(frozen=True)
class ChoiceEvaluation:
    """Right answers to the questions of a file."""

    acc: Accuracy
    """By likelihood."""
    acc_norm: Accuracy
    """By log-likelihood per character of the choice."""
    acc_bytes: Accuracy
    """By log-likelihood per byte of the choice."""
    questions: int
    skipped: int
    """Records that are no questions."""
    seconds: float


def evaluate_choices(
    run: Path,
    path: Path,
    base: Path | None = None,
    options: ChoiceOptions | None = None,
    write: Callable[[ChoiceScore], object] = lambda _: None,
    *,
    average: bool = False,
) -> ChoiceEvaluation:
    """Return the accuracy of a run's newest model on the questions of a file.

    `base` and `average` are as in `Model.open`. `write` is called with the scores of each question, in order. Raises
    `QuestionError` for an invalid record that is refused, `DataError` for a file without questions, `ModelError` for a
    likelihood that is not finite.
    """
    begin = time.perf_counter()
    chosen = options or ChoiceOptions()
    questions = _Questions(path, Model.open(run, base, average=average), chosen)
    right = [list[bool](), list[bool](), list[bool]()]
    progress = PeriodicLog()
    for score in choice_scores(questions.model, questions):
        write(score)
        found = (score.chosen, score.chosen_norm, score.chosen_bytes)
        for answers, choice in zip(right, found, strict=True):
            answers.append(choice == score.question.answer)
        progress("answering: {:,} questions", len(right[0]))
    if not right[0]:
        got = f"none, and {questions.skipped:,} invalid records" if questions.skipped else "none"
        raise DataError(str(path), expected="at least one question", got=got)
    acc, acc_norm, acc_bytes = (accuracy(answers) for answers in right)
    seconds = time.perf_counter() - begin
    return ChoiceEvaluation(acc, acc_norm, acc_bytes, len(right[0]), questions.skipped, seconds)


def choice_scores(model: Model, questions: Iterable[tuple[Question, Sequence[Continuation]]]) -> Iterator[ChoiceScore]:
    """Yield the scores of questions with their encoded choices, in order; raises `ModelError`."""
    source = iter(questions)
    while block := list(islice(source, _BLOCK)):
        found = iter(likelihoods(model, [choice for _, choices in block for choice in choices]))
        for question, choices in block:
            score = ChoiceScore(question, tuple(islice(found, len(choices))))
            if not all(math.isfinite(likelihood.log_likelihood) for likelihood in score.likelihoods):
                raise ModelError(
                    str(model.path),
                    expected="a model with finite likelihoods",
                    got=f"{[likelihood.log_likelihood for likelihood in score.likelihoods]} at {question.origin}",
                    cause="its weights contain NaN or infinite numbers: the training diverged",
                    hint="evaluate an earlier checkpoint, or train again with a lower optimizer.lr",
                )
            yield score


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Return the share of right answers, and its standard error from the sample's variance."""
    count, mean = len(right), sum(right) / len(right)
    if count < 2:
        return Accuracy(mean, math.nan)
    variance = sum((answer - mean) ** 2 for answer in right) / (count - 1)
    return Accuracy(mean, math.sqrt(variance / count))


class _Questions:
    """The questions of a file with their encoded choices; invalid ones are refused, or counted and left out."""

    def __init__(self, path: Path, model: Model, options: ChoiceOptions) -> None:
        self._path, self.model, self._options = path, model, options
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[Question, list[Continuation]]]:
        for question in read_questions(self._path):
            try:
                if isinstance(question, QuestionError):
                    raise question
                yield question, self._encoded(question)
            except QuestionError:
                if self._options.invalid is InvalidRecords.REFUSE:
                    raise
                self.skipped += 1

    def _encoded(self, question: Question) -> list[Continuation]:
        delimiter, special = self._options.delimiter, self._options.special
        try:
            return [
                encode_continuation(self.model, question.prompt, delimiter + choice, special)
                for choice in question.choices
            ]
        except InputError as error:
            expected = f"{error.expected} for {error.subject}"
            raise QuestionError(question.origin, expected, error.got, error.cause) from error
