"""The command `threadloom eval`."""

from pathlib import Path
from typing import Any

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import average_option, base_option, reported_errors


@click.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR", help="Text to evaluate on. Repeatable.")
@click.option("--stride", type=click.IntRange(min=1), metavar="TOKENS",
              help="Move the window by TOKENS, so that most tokens are scored after at least context - TOKENS others.  "
                   "[default: the context]")  # fmt: skip
@click.option("--by-file", is_flag=True, help="Score each file by itself, and print a table.")
@click.option("--field", default="text", show_default=True, metavar="NAME",
              help="Of records (JSON Lines, Parquet, Arrow): the field with the text.")  # fmt: skip
@click.option("--invalid", type=click.Choice(["refuse", "skip"]), default="refuse", show_default=True,
              help="Treatment of records that cannot be used.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@base_option
@average_option
def evaluate(
    *, run: Path, base: Path | None, average: bool, texts: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Compute the loss of a trained model on a text.

    Prints nats per token, perplexity, bits per character and bits per byte.

    The last two of models with different tokenizers can be compared. RUN is a run directory, whose newest checkpoint is
    used, a checkpoint, or the folder of a model in Hugging Face's layout. Without --text, the loss is that of the whole
    validation part of the run's text. (The losses that `train` reports are those of some windows of that part:
    evaluation.batches of them, and evaluation.final_batches at the end.) Each token but the first is scored once.
    Records are scored by themselves.
    """
    with reported_errors():
        from threadloom.stages.config import InvalidRecords
        from threadloom.stages.inference import TextOptions, evaluate_text
        from threadloom.stages.tools.evaluate.report import json_report, text_report

        chosen = TextOptions(**options | {"invalid": InvalidRecords(options["invalid"])})
        score = evaluate_text(run, tuple(texts), base, chosen, average=average)
        write_output(json_report(score) if as_json else text_report(score))
