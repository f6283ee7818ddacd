"""The command `threadloom eval`."""

from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import average_option, base_option, reported_errors, text_argument


@click.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR", help="Text to evaluate on. Repeatable.")
@click.option("--stride", type=click.IntRange(min=1), metavar="TOKENS",
              help="Move the window by TOKENS, so that most tokens are scored after at least context - TOKENS others.  "
                   "[default: the context]")  # fmt: skip
@click.option("--by-file", is_flag=True, help="Score each file by itself, and print a table.")
@click.option("--field", default="text", show_default=True, metavar="NAME",
              help="Of records (JSON Lines, Parquet, Arrow): the field with the text.")  # fmt: skip
@click.option("--choices", type=click.Path(path_type=Path), metavar="FILE",
              help="Multiple-choice questions to answer: JSON Lines with prompt, choices and answer.")  # fmt: skip
@click.option("--delimiter", default=" ", metavar="TEXT",
              help="Text between a prompt and each choice.  [default: a space]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the likelihoods of each question's choices to FILE, as JSON Lines.")  # fmt: skip
@click.option("--special-tokens", is_flag=True,
              help="Read special tokens in prompts and choices, such as <|im_end|>, as tokens.")  # fmt: skip
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
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the loss of a trained model on a text, or let it answer questions.

    Prints nats per token, perplexity, bits per character and bits per byte.

    The last two of models with different tokenizers can be compared. RUN is a run directory, whose newest checkpoint is
    used, a checkpoint, or the folder of a model in Hugging Face's layout. Without --text, the loss is that of the whole
    validation part of the run's text. (The losses that `train` reports are those of some windows of that part:
    evaluation.batches of them, and evaluation.final_batches at the end.) Each token but the first is scored once.
    Records are scored by themselves.

    With --choices, prints the share of questions whose right choice is the most likely one (acc), that with the largest
    log-likelihood per character (acc_norm), or per byte (acc_bytes).
    """
    with reported_errors():
        if choices is None:
            _refuse(options, ("delimiter", "output", "special_tokens"), "--choices FILE")
            report = _evaluate_text(_Chosen(run, base, average), texts, options, as_json=as_json)
        else:
            if texts:
                raise click.UsageError("--text and --choices are two evaluations: pass one of them")
            _refuse(options, ("stride", "by_file", "field"), "a text, not --choices")
            report = _evaluate_choices(_Chosen(run, base, average), choices, options, as_json=as_json)
        write_output(report)


class _Chosen(NamedTuple):
    """The model to evaluate, as the command names it."""

    run: Path
    base: Path | None
    average: bool


def _refuse(options: dict[str, Any], names: tuple[str, ...], needed: str) -> None:
    """Raise UsageError for an option that has no effect."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to {needed}")
        del options[name]


def _evaluate_text(model: _Chosen, texts: tuple[str, ...], options: dict[str, Any], *, as_json: bool) -> str:
    from threadloom.stages.config import InvalidRecords
    from threadloom.stages.inference import TextOptions, evaluate_text
    from threadloom.stages.tools.evaluate.report import json_report, text_report

    chosen = TextOptions(**options | {"invalid": InvalidRecords(options["invalid"])})
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
