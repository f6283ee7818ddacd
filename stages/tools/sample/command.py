"""The command `threadloom sample`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from loguru import logger

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import reported_errors, text_argument

if TYPE_CHECKING:
    from threadloom.stages.inference import SamplingSettings


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue.  [default: the beginning of a line]")
@click.option("--tokens", type=click.IntRange(min=0), default=500, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=float, default=0.8, show_default=True,
              help="Below 1: less random; 0: always the most likely token.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=1), default=None, help="Sample from the K most likely tokens only.")
@click.option("--top-p", type=float, default=1.0, show_default=True,
              help="Sample from the most likely tokens whose probabilities add up to P.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=1337, show_default=True,
              help="The same seed gives the same text.")  # fmt: skip
def sample(
    run: Path, prompt: str | None, tokens: int, temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    """Generate text with a trained model.

    RUN is a run directory, whose newest checkpoint is used, a checkpoint, or a GPT-2 folder in Hugging Face's layout.
    """
    with reported_errors():
        from threadloom.stages.inference import SamplingSettings

        begin = time.perf_counter()
        prompt = None if prompt is None else text_argument(prompt)
        print_sample(run, prompt, tokens, SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p), seed)
        logger.debug("{} tokens in {:.2f} s", tokens, time.perf_counter() - begin)


def print_sample(run: Path, prompt: str | None, tokens: int, settings: "SamplingSettings", seed: int) -> None:
    """Generate `tokens` tokens and print them as they come. Without a prompt, the text begins a line."""
    from threadloom.stages.inference import Model, generate

    model = Model.open(run)
    prompt_ids = model.default_prompt() if prompt is None else model.tokenizer.encode(prompt)
    beginning = prompt or model.tokenizer.decode(prompt_ids)
    write_output(beginning if beginning.strip() else "", end="")
    ids: list[int] = []
    shown = ""
    try:
        for token in generate(model.weights, model.geometry, prompt_ids, tokens, settings, seed):
            ids.append(token)
            text = model.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # a character may consist of several tokens
                write_output(text[len(shown) :], end="")
                shown = text
    except KeyboardInterrupt:
        write_output()
        raise
    write_output(model.tokenizer.decode(ids)[len(shown) :] if ids else "")
