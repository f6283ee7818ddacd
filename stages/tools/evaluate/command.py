"""The command `threadloom eval`."""

from pathlib import Path

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import base_option, reported_errors


@click.command(name="eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR", help="Text to evaluate on. Repeatable.")
@base_option
def evaluate(run: Path, texts: tuple[str, ...], base: Path | None) -> None:
    """Compute the loss of a trained model on a text.

    Prints it in nats per token, as perplexity, and in bits per character. RUN is a run directory, whose newest
    checkpoint is used, a checkpoint, or the folder of a model in Hugging Face's layout. Without --text, the loss is
    that of the whole validation part of the run's text. (The losses that `train` reports are those of some windows of
    that part: evaluation.batches of them, and evaluation.final_batches at the end.)
    """
    with reported_errors():
        from threadloom.stages.inference import evaluate_text

        score = evaluate_text(run, tuple(texts), base)
        write_output(
            f"loss {score.loss:.4f} nats per token, perplexity {score.perplexity:.3f}, "
            f"{score.bits_per_character:.4f} bits per character ({score.tokens:,} tokens, {score.seconds:.1f} s)"
        )
