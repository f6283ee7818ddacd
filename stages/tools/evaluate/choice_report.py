"""The report of answered questions: as text, as JSON, and a line of JSON for each question."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from threadloom.stages.inference import Accuracy, ChoiceEvaluation, ChoiceScore


def choice_text(score: ChoiceEvaluation) -> str:
    """Return the accuracies with their standard errors as one line."""
    skipped = f", {score.skipped:,} invalid records left out" if score.skipped else ""
    return (
        f"acc {_with_error(score.acc)}, acc_norm {_with_error(score.acc_norm)} per character, "
        f"acc_bytes {_with_error(score.acc_bytes)} per byte ({score.questions:,} questions{skipped}, "
        f"{score.seconds:.1f} s)"
    )


def choice_json(score: ChoiceEvaluation) -> str:
    """Return the accuracies with their standard errors as JSON."""
    content: dict[str, float | None] = {}
    for name in ("acc", "acc_norm", "acc_bytes"):
        found: Accuracy = getattr(score, name)
        content |= {name: found.mean, f"{name}_stderr": None if math.isnan(found.error) else found.error}
    return json.dumps(
        content | {"questions": score.questions, "skipped": score.skipped, "seconds": score.seconds}, indent=1
    )


@contextmanager
def question_writer(path: Path | None) -> Iterator[Callable[[ChoiceScore], object]]:
    """Yield a function that writes the scores of one question to a new file; without a path it does nothing."""
    if path is None:
        yield lambda _: None
        return
    with path.open("w", encoding="utf-8") as file:
        yield lambda score: file.write(_line(score))


def _line(score: ChoiceScore) -> str:
    question, chosen = score.question, (score.chosen, score.chosen_norm, score.chosen_bytes)
    content = {
        "line": question.origin.record,
        "answer": question.answer,
        **dict(
            zip(("acc", "acc_norm", "acc_bytes"), (float(choice == question.answer) for choice in chosen), strict=True)
        ),
        **dict(zip(("chosen", "chosen_norm", "chosen_bytes"), chosen, strict=True)),
        "log_likelihoods": [likelihood.log_likelihood for likelihood in score.likelihoods],
        "greedy": [likelihood.greedy for likelihood in score.likelihoods],
        "prompt": question.prompt,
        "choices": question.choices,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def _with_error(found: Accuracy) -> str:
    return f"{found.mean:.4f}" if math.isnan(found.error) else f"{found.mean:.4f} ± {found.error:.4f}"
