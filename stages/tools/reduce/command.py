"""The command `threadloom reduce`."""

from pathlib import Path

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import base_option, reported_errors

ROUNDINGS = ("rtn", "gptq", "gptq-sorted", "lll", "cvp")
BASES = ("pca", "lll", "rows")
TOKENS = 65_536


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the model.")
@click.option("--bits", type=click.FloatRange(1.0, 12.0), help="Round to integers of this entropy per weight.")
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    default="cvp",
    show_default=True,
    help="Of --bits: the rounding that is written; all are compared.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Replace the embedding by a product of this rank.")
@click.option(
    "--basis",
    type=click.Choice(BASES),
    default="pca",
    show_default=True,
    help="Of --rank: the basis that is written; all are compared.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE_OR_DIR",
    help="Text to measure on; the last quarter is held out. By default that of the run. Repeatable.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=16),
    default=TOKENS,
    show_default=True,
    help="Most tokens to measure on, and most tokens that are held out.",
)
@base_option
def reduce(
    run: Path, out: Path, bits: float | None, rounding: str, rank: int | None, basis: str, texts: tuple[str, ...],
    tokens: int, base: Path | None,
) -> None:  # fmt: skip
    """Round the token embedding of a model to few bits, or reduce its rank.

    RUN is as in `threadloom eval`. The mean of h·hᵀ over the hidden states of a text tells which changes of the
    embedding change the logits least. The result is the model in Hugging Face's layout, in float32, with
    reduction.json, the figures; after --bits also with wte.integers, the integers in compressed form.
    """
    with reported_errors():
        from threadloom.stages.lattice import Basis, Rounding
        from threadloom.stages.tools.reduce.reducing import Reducer, Request

        request = Request(run, out, base, tuple(texts), tokens)
        reducer = Reducer.open(request, rank=rank, bits=bits)
        lines = (
            reducer.lower_rank(rank, Basis(basis))
            if rank is not None
            else reducer.round(bits or 0.0, Rounding(rounding))
        )
        for line in lines:
            write_output(line)
