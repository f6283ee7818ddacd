"""The command `threadloom eval`."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import average_option, base_option, reported_errors, text_argument


@click.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Text to evaluate on; - is standard input. Repeatable.")  # fmt: skip
@click.option("--stride", type=click.IntRange(min=1), metavar="TOKENS",
              help="Move the window by TOKENS, so that most tokens are scored after at least context - TOKENS others.  "
                   "[default: the context]")  # fmt: skip
@click.option("--by-file", is_flag=True, help="Score each file by itself, and print a table.")
@click.option("--field", default="text", show_default=True, metavar="NAME",
              help="Of records (JSON Lines, Parquet, Arrow): the field with the text.")  # fmt: skip
@click.option("--conversations", type=click.Choice(["openai", "sharegpt", "alpaca", "completion"]),
              help="Layout of all records, which are conversations.  [default: by the keys of each]")  # fmt: skip
@click.option("--chat-template", default="", metavar="FILE",
              help="Template of conversations: a file, chatml or plain.  [default: that of the model]")  # fmt: skip
@click.option("--choices", type=click.Path(path_type=Path), metavar="FILE",
              help="Multiple-choice questions to answer: JSON Lines with prompt, choices and answer.")  # fmt: skip
@click.option("--delimiter", default=" ", metavar="TEXT",
              help="Text between a prompt and each choice.  [default: a space]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the likelihoods of each question's choices to FILE, as JSON Lines.")  # fmt: skip
@click.option("--special-tokens", is_flag=True,
              help="Read special tokens in prompts and choices, such as <|im_end|>, as tokens.")  # fmt: skip
@click.option("--harness", "tasks", multiple=True, metavar="TASK",
              help="Run a task of lm-evaluation-harness, which the extra lm-eval installs. Repeatable.")  # fmt: skip
@click.option("--tasks", "folder", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Folder with the files of the tasks, in place of those of the harness.")  # fmt: skip
@click.option("--fewshot", "examples", type=click.IntRange(min=0), metavar="N",
              help="Solved examples before each question of a task.  [default: that of the task]")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Questions of a task at most.")
@click.option("--invalid", type=click.Choice(["refuse", "skip"]), default="refuse", show_default=True,
              help="Treatment of records that cannot be used.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@base_option
@average_option
def evaluate(
    *,
    run: Path,
    base: Path | None,
    average: bool,
    texts: tuple[str, ...],
    choices: Path | None,
    tasks: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the loss of a trained model on a text, or let it answer questions.

    Prints nats per token, perplexity, bits per character and bits per byte.

    The last two of models with different tokenizers can be compared. RUN is a run directory, whose newest checkpoint is
    used, a checkpoint, or the folder of a model in Hugging Face's layout. Without --text, the loss is that of the whole
    validation part of the run's text. (The losses that `train` reports are those of some windows of that part:
    evaluation.batches of them, and evaluation.final_batches at the end.) Each token but the first is scored once.
    Records are scored by themselves. Of conversations, and of prompts with completions, the tokens that count in a
    training are scored.

    With --choices, prints the share of questions whose right choice is the most likely one (acc), that with the largest
    log-likelihood per character (acc_norm), or per byte (acc_bytes). With --harness, prints the results of
    lm-evaluation-harness.
    """
    with reported_errors():
        model = _Chosen(run, base, average)
        given = [name for name, value in (("--text", texts), ("--choices", choices), ("--harness", tasks)) if value]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} are different evaluations: pass one of them")
        if choices:
            _refuse(options, _OF_TEXT | _OF_TASKS)
            report = _evaluate_choices(model, choices, options, as_json=as_json)
        elif tasks:
            _refuse(options, _OF_TEXT | _OF_CHOICES | _OF_RECORDS)
            report = _run_tasks(model, tasks, options, as_json=as_json)
        else:
            _refuse(options, _OF_CHOICES | _OF_TASKS)
            report = _evaluate_text(model, texts, options, as_json=as_json)
        write_output(report)


_OF_TEXT = dict.fromkeys(("stride", "by_file", "field", "conversations", "chat_template"), "the loss of a text")
_OF_RECORDS = {"invalid": "--text or --choices"}
_OF_CHOICES = {"delimiter": "--choices", "output": "--choices", "special_tokens": "--choices"}
_OF_TASKS = {"folder": "--harness", "examples": "--harness", "limit": "--harness"}
"""Options of one kind of evaluation → what they belong to, for messages."""


class _Chosen(NamedTuple):
    """The model to evaluate, as the command names it."""

    run: Path
    base: Path | None
    average: bool


def _refuse(options: dict[str, Any], others: Mapping[str, str]) -> None:
    """Remove the options of other evaluations; raise UsageError for one that was given."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in others:
            if context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT:
                raise click.UsageError(f"{parameter.opts[0]} belongs to {others[parameter.name]}")
            del options[parameter.name]


def _evaluate_text(model: _Chosen, texts: tuple[str, ...], options: dict[str, Any], *, as_json: bool) -> str:
    from threadloom.stages.config import ConversationLayout, InvalidRecords
    from threadloom.stages.inference import TextOptions, evaluate_text
    from threadloom.stages.tools.evaluate.report import json_report, text_report

    layout = options["conversations"]
    enums = {
        "invalid": InvalidRecords(options["invalid"]),
        "conversations": None if layout is None else ConversationLayout(layout),
    }
    chosen = TextOptions(**options | enums)
    score = evaluate_text(model.run, tuple(texts), model.base, chosen, average=model.average)
    return json_report(score) if as_json else text_report(score)


def _evaluate_choices(model: _Chosen, path: Path, options: dict[str, Any], *, as_json: bool) -> str:
    from threadloom.stages.config import InvalidRecords, SpecialTokens
    from threadloom.stages.inference import ChoiceOptions, evaluate_choices
    from threadloom.stages.tools.evaluate.choice_report import choice_json, choice_text, question_writer

    special = SpecialTokens.TOKENS if options["special_tokens"] else SpecialTokens.TEXT
    chosen = ChoiceOptions(text_argument(options["delimiter"]), InvalidRecords(options["invalid"]), special)
    with question_writer(options["output"]) as write:
        score = evaluate_choices(model.run, path, model.base, chosen, write, average=model.average)
    return choice_json(score) if as_json else choice_text(score)


def _run_tasks(model: _Chosen, tasks: tuple[str, ...], options: dict[str, Any], *, as_json: bool) -> str:
    from threadloom.stages.tools.evaluate.harness import register, results_json, results_table, run_tasks

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's progress bars, which are for a terminal
    opened = register()(model.run, model.base, average=model.average)
    results = run_tasks(opened, tasks, **options)
    return results_json(results) if as_json else results_table(results)
