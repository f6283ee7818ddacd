"""Multiple-choice questions: likelihoods against the float64 reference, accuracies, records that are no questions."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.error_bounds import mean_and_bound
from tests.stages.inference.test_text_evaluation import GEOMETRY, folder, random_tensors
from tests.stages.support import command
from threadloom.stages.config import InvalidRecords, SpecialTokens
from threadloom.stages.data import DataError, Origin
from threadloom.stages.data.library_tokenizer import LibraryTokenizer
from threadloom.stages.inference import (
    ChoiceOptions,
    ChoiceScore,
    Model,
    Question,
    QuestionError,
    encode_continuation,
    evaluate_choices,
    prefix_token,
)
from threadloom.stages.inference.choice_evaluation import accuracy
from threadloom.stages.inference.continuations import Likelihood
from threadloom.stages.inference.decoder import GenerationError

__all__ = ["folder"]

pytestmark = pytest.mark.timeout(600)  # includes compiling with an empty cache


QUESTIONS = [
    {"prompt": "Wie", "choices": ["a", "b", "c"], "answer": 2},  # one token each after the delimiter
    {"prompt": "Eine Frage, die länger als der Kontext ist", "choices": ["ja", "nein"], "answer": "nein"},
    {"prompt": "ends with spaces  \n", "choices": ["x", "yyyy"], "answer": 0},
    {"prompt": "", "choices": ["ohne", "ö"], "answer": 1},
    {"prompt": "  ", "choices": ["q", "r"], "answer": 1},
    {"prompt": "so", "choices": ["0123456789"[:9], "😀"], "answer": 0},  # with the delimiter: as long as the context
]


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def expected_likelihood(prompt: str, choice: str, delimiter: str) -> tuple[float, float, bool]:
    """Return the log-likelihood of a choice, a bound on the error of a correct one, and whether it is greedy.

    A token is a byte, so all rules but that on the borders of tokens can be written down directly.
    """
    context = prompt.rstrip()
    continuation = (prompt[len(context) :] + delimiter + choice).encode()
    ids = np.frombuffer((context.encode() or b"\n") + continuation, np.uint8).astype(np.int64)
    window = ids[-(GEOMETRY.context + 1) :]
    tensors, count = random_tensors(), len(continuation)

    def losses() -> np.ndarray:
        return reference.losses(tensors, window[None, :-1], window[None, 1:], GEOMETRY.heads)[0, -count:]

    logits = reference.forward(tensors, window[None, :-1], GEOMETRY.heads).logits[0, -count:]
    mean, bound = mean_and_bound(losses)
    return -mean * count, bound * count, bool((logits.argmax(axis=1) == window[-count:]).all())


@pytest.mark.parametrize("delimiter", [" ", ""])
def test_likelihoods_are_those_of_the_reference(folder: Path, tmp_path: Path, delimiter: str) -> None:
    path = write(tmp_path / "questions.jsonl", [*QUESTIONS])
    found = list[ChoiceScore]()
    result = evaluate_choices(folder, path, None, ChoiceOptions(delimiter), found.append)
    assert [score.question.origin.record for score in found] == list(range(1, len(QUESTIONS) + 1))
    right = list[bool]()
    for score in found:
        question = score.question
        likelihoods = list[float]()
        for choice, likelihood in zip(question.choices, score.likelihoods, strict=True):
            expected, bound, greedy = expected_likelihood(question.prompt, choice, delimiter)
            assert abs(likelihood.log_likelihood - expected) <= bound, (question.prompt, choice)
            assert likelihood.greedy == greedy
            likelihoods.append(expected)
        assert score.chosen == np.argmax(likelihoods)
        right.append(int(np.argmax(likelihoods)) == question.answer)
    assert result.acc == accuracy(right)
    assert (result.questions, result.skipped) == (len(QUESTIONS), 0)


def test_choices_are_compared_as_a_whole_by_characters_and_by_bytes() -> None:
    question = Question(Origin(Path("x"), 1), "", ("ab", "abcdef", "üüüü"), 1)
    score = ChoiceScore(question, tuple(Likelihood(value, greedy=False) for value in (-2.0, -5.0, -3.0)))
    assert (score.chosen, score.chosen_norm, score.chosen_bytes) == (0, 2, 2)  # -1, -0.83, -0.75; -1, -0.83, -0.375
    score = ChoiceScore(question, tuple(Likelihood(value, greedy=False) for value in (-6.0, -5.0, -6.8)))
    assert (score.chosen, score.chosen_norm, score.chosen_bytes) == (1, 1, 1)


def test_the_standard_error_is_that_of_the_sample() -> None:
    for right in ([True, False], [True] * 5, [True, False, False, True, True, False, True]):
        found = accuracy(right)
        assert found.mean == pytest.approx(statistics.mean(right))
        assert found.error == pytest.approx(statistics.stdev(map(float, right)) / math.sqrt(len(right)))
    assert math.isnan(accuracy([True]).error)


GOOD = {"prompt": "p", "choices": ["a", "b"], "answer": 0}
BAD = [
    ("nonsense", "a JSON object"),
    ("[" * 5000, "levels"),
    ({"choices": ["a", "b"], "answer": 0}, "the fields prompt, choices and answer, got no prompt"),
    (GOOD | {"prompt": 3}, "a text as prompt, got 3"),
    (GOOD | {"choices": "ab"}, "a list of texts as choices, got 'ab'"),
    (GOOD | {"choices": {"a": 1}}, "got a value of type dict"),
    (GOOD | {"choices": ["a"]}, "at least two choices, got 1"),
    (GOOD | {"choices": ["a", ""]}, "at least one character, got ''"),
    (GOOD | {"choices": ["a", None]}, "at least one character, got a value of type NoneType"),
    (GOOD | {"answer": 2}, "an answer from 0 to 1, the index of a choice, or the text of one choice, got 2"),
    (GOOD | {"answer": -1}, "got -1"),
    (GOOD | {"answer": True}, "got True"),
    (GOOD | {"answer": "c"}, "got 'c'"),
    (GOOD | {"answer": "a", "choices": ["a", "a"]}, "got 'a'"),
    ('{"prompt": "\\ud800", "choices": ["a", "b"], "answer": 0}', "the lone surrogate U\\+D800"),
    (GOOD | {"choices": ["a", "b" * 11]}, "1 to 11 tokens, the context of the model for the continuation ' bbb"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_records_that_are_no_questions_are_refused_or_skipped(
    folder: Path, tmp_path: Path, record: object, message: str
) -> None:
    path = write(tmp_path / "questions.jsonl", [GOOD, "", record, GOOD])
    with pytest.raises(QuestionError, match=rf"questions\.jsonl, line 3: .*{message}.*--invalid skip"):
        evaluate_choices(folder, path)
    skipped = evaluate_choices(folder, path, None, ChoiceOptions(invalid=InvalidRecords.SKIP))
    assert (skipped.questions, skipped.skipped) == (2, 1)


def test_a_file_without_questions_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one question, got none"):
        evaluate_choices(folder, write(tmp_path / "empty.jsonl", []))
    path = write(tmp_path / "bad.jsonl", ["x", "y"])
    with pytest.raises(DataError, match="got none, and 2 invalid records"):
        evaluate_choices(folder, path, None, ChoiceOptions(invalid=InvalidRecords.SKIP))


def test_the_command_prints_accuracies_and_writes_every_question(folder: Path, tmp_path: Path) -> None:
    path, output = write(tmp_path / "q.jsonl", [*QUESTIONS, "x"]), tmp_path / "out.jsonl"
    start = ("eval", folder, "--choices", path)
    said = command(*start, "--invalid=skip", "--output", output)
    assert said.status == 0, said.err
    assert said.out.startswith("acc 0.")
    assert "(6 questions, 1 invalid records left out, " in said.out
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    content = json.loads(command(*start, "--invalid=skip", "--json").out)
    assert len(lines) == content["questions"] == 6
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert content[name] == pytest.approx(statistics.mean(line[name] for line in lines))
        error = statistics.stdev(line[name] for line in lines) / math.sqrt(6)
        assert content[f"{name}_stderr"] == pytest.approx(error)
    assert [line["line"] for line in lines] == list(range(1, 7))
    assert lines[1]["answer"] == 1
    assert np.argmax(lines[0]["log_likelihoods"]) == lines[0]["chosen"]
    command(*start).refuses(f"{path}, line 7: expected a JSON object")
    for wrong in (("--stride=3",), ("--by-file",), ("--text", path)):
        assert command(*start, *wrong).status == 2
    assert command("eval", folder, "--output", output).status == 2


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 6, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True},
    ],
    "pre_tokenizer": None,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2, " b": 3, "ab": 4, "?": 5}, "unk_token": "?",
              "merges": [[" ", "b"], ["a", "b"]]},
}  # fmt: skip


def test_borders_of_tokens_are_those_of_the_whole_text() -> None:
    """The space before a choice is part of its first token; a choice that joins the last token has none of its own."""
    tokenizer = LibraryTokenizer(json.dumps(TOKENIZER), end_of_text="<end>")
    model = Model(Path("m"), GEOMETRY, None, tokenizer, None)  # type: ignore[arg-type]
    for context, continuation, expected in (
        ("a", " b", ([0], [3])),
        ("a ", "b", ([0], [3])),
        ("a a", "a", ([0, 2, 0], [0])),
        ("", "<end>b", ([6], [5, 5, 5, 5, 5, 1])),
        ("   ", "b", ([6], [2, 2, 3])),
    ):
        found = encode_continuation(model, context, continuation)
        assert (found.context.tolist(), found.ids.tolist()) == expected, (context, continuation)
    tokens = encode_continuation(model, "", "<end>b", SpecialTokens.TOKENS)
    assert (prefix_token(model), tokens.context.tolist(), tokens.ids.tolist()) == (6, [6], [1])
    with pytest.raises(GenerationError, match="got 0 \\(its text is part of the last token of the context\\)"):
        encode_continuation(model, "a", "b")
