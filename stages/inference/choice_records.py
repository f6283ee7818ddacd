"""Files of multiple-choice questions: records with `prompt`, `choices` and `answer`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadloom.stages.config import InputError
from threadloom.stages.data import Origin, RecordError, json_records

_FIELDS = ("prompt", "choices", "answer")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the texts that may continue it, and the right one."""

    origin: Origin
    prompt: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""


class QuestionError(InputError):
    """A record that is no question; `subject` is its file and line."""

    def __init__(self, origin: Origin, expected: str, got: str, hint: str | None = None) -> None:
        remedy = "repair the record, or leave out such records with --invalid skip"
        super().__init__(str(origin), expected, got, hint=f"{hint}; or {remedy}" if hint else remedy)


def read_questions(path: Path) -> Iterator[Question | QuestionError]:
    """Yield the questions of a file and the errors of its invalid records, in order.

    A file is JSON Lines, which may be compressed. Raises `TextError` for one that cannot be read.
    """
    for origin, fields in json_records(path):
        if isinstance(fields, RecordError):
            yield QuestionError(origin, fields.expected, fields.got)
            continue
        try:
            yield question_of(fields, origin)
        except QuestionError as error:
            yield error


def question_of(fields: Mapping[str, Any], origin: Origin) -> Question:
    """Return the question of a record; raises `QuestionError`."""
    missing = [name for name in _FIELDS if fields.get(name) is None]
    if missing:
        raise QuestionError(origin, "the fields prompt, choices and answer", f"no {missing[0]}")
    prompt, choices, answer = (fields[name] for name in _FIELDS)
    if not isinstance(prompt, str):
        raise QuestionError(origin, "a text as prompt", _described(prompt))
    if not isinstance(choices, Sequence) or isinstance(choices, str | bytes):
        raise QuestionError(origin, "a list of texts as choices", _described(choices))
    wrong = [choice for choice in choices if not isinstance(choice, str) or not choice]
    if wrong:
        raise QuestionError(origin, "choices that are texts of at least one character", _described(wrong[0]))
    if len(choices) < 2:
        raise QuestionError(origin, "at least two choices", str(len(choices)))
    for text in (prompt, *choices):
        _require_utf8(text, origin)
    return Question(origin, prompt, tuple(choices), _index(answer, choices, origin))


def _index(answer: Any, choices: Sequence[str], origin: Origin) -> int:
    if isinstance(answer, str) and choices.count(answer) == 1:
        return choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    expected = f"an answer from 0 to {len(choices) - 1}, the index of a choice, or the text of one choice"
    raise QuestionError(origin, expected, _described(answer))


def _described(value: Any) -> str:
    if isinstance(value, str | int | float):
        shown = repr(value)
        return shown if len(shown) <= 60 else shown[:60] + "..."
    return f"a value of type {type(value).__name__}"


def _require_utf8(text: str, origin: Origin) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"the lone surrogate U+{ord(text[error.start]):04X}"
        raise QuestionError(origin, "texts that UTF-8 can encode", got) from error
