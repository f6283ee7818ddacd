"""The command `threadloom sample`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from loguru import logger

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import average_option, base_option, reported_errors, text_argument

if TYPE_CHECKING:
    from threadloom.stages.config import SpecialTokens
    from threadloom.stages.inference import DecodePrecision, GenerationLimits, SamplingSettings


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue.  [default: the beginning of a line]")
@click.option("--tokens", type=click.IntRange(min=0), default=500, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=float, default=0.8, show_default=True,
              help="Below 1: less random; 0: always the most likely token.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=1), default=None, help="Sample from the K most likely tokens only.")
@click.option("--top-p", type=float, default=1.0, show_default=True,
              help="Sample from the most likely tokens whose probabilities add up to P.")  # fmt: skip
@click.option("--stop", "stops", multiple=True, metavar="TEXT",
              help="End the generated text before TEXT. Repeatable.")  # fmt: skip
@click.option("--ignore-eos", is_flag=True, help="Continue after the model's token for the end of a text.")
@click.option("--special-tokens", is_flag=True,
              help="Read special tokens in the prompt, such as <|im_end|>, as tokens, not as text.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=1337, show_default=True,
              help="The same seed gives the same text.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "bf16", "int8", "auto"]), default="auto",
              show_default=True,
              help="Format of the weights. auto: bf16 above 8 million weights, otherwise float32.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=None,
              help="Threads that divide a prompt and each token; the text does not depend on their number.  "
                   "[default: the cores, fewer for a small model]")  # fmt: skip
@base_option
@average_option
def sample(
    *,
    run: Path,
    base: Path | None,
    average: bool,
    prompt: str | None,
    tokens: int,
    stops: tuple[str, ...],
    ignore_eos: bool,
    special_tokens: bool,
    seed: int,
    precision: str,
    threads: int | None,
    **settings: Any,
) -> None:
    """Generate text with a trained model.

    RUN is a run directory, whose newest checkpoint is used, a checkpoint, or the folder of a model in Hugging Face's
    layout. The text ends after --tokens tokens, before a --stop, or when the model draws its token for the end of a
    text.
    """
    with reported_errors():
        from threadloom.stages.config import SpecialTokens
        from threadloom.stages.inference import DecodePrecision, GenerationLimits, SamplingSettings

        begin = time.perf_counter()
        limits = GenerationLimits(tokens, tuple(map(text_argument, stops)), ignore_eos)
        text = None if prompt is None else text_argument(prompt)
        special = SpecialTokens.TOKENS if special_tokens else SpecialTokens.TEXT
        chosen = SamplingSettings(**settings)
        weights = DecodePrecision(precision)
        print_sample(
            run, text, chosen, limits, seed, special, base, average=average, precision=weights, threads=threads
        )
        logger.debug("at most {} tokens in {:.2f} s", tokens, time.perf_counter() - begin)


def print_sample(
    run: Path,
    prompt: str | None,
    settings: "SamplingSettings",
    limits: "GenerationLimits",
    seed: int,
    special: "SpecialTokens | None" = None,
    base: Path | None = None,
    *,
    average: bool = False,
    precision: "DecodePrecision | None" = None,
    threads: int | None = None,
) -> None:
    """Generate a text and print it as it comes. Without a prompt, it is a new text, or one that begins a line.

    `special` is the treatment of special tokens in the prompt; by default they are text. `base` and `average` are as in
    `Model.open`. `precision` is the number format of the weights, by default float32. `threads` are as in `generate`.
    """
    from threadloom.stages.config import SpecialTokens
    from threadloom.stages.inference import DecodePrecision, Model, generate_text
    from threadloom.stages.resolve import float32_settings

    model = Model.open(run, base, average=average, precision=precision or DecodePrecision.FLOAT32)
    prompt_ids = model.prompt(prompt, special or SpecialTokens.TEXT) if prompt else model.default_prompt()
    shown = prompt_ids[len(model.tokenizer.beginning) :]
    beginning = prompt or model.tokenizer.decode(shown)
    pieces = generate_text(model, prompt_ids, settings, limits, seed, None, threads)
    write_output(beginning if beginning.strip() else "", end="")
    try:
        with float32_settings():
            for piece in pieces:
                write_output(piece, end="")
    finally:
        write_output()
