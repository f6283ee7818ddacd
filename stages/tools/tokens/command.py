"""The command `threadloom tokens`."""

from itertools import islice
from pathlib import Path

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import reported_errors

_LINES = 1000
"""Lines that are written at a time."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Only the first N tokens.  [default: all]")
def tokens(path: Path, first: int | None) -> None:
    """List the vocabulary of a run or of a tokenizer.

    PATH is a run directory or its folder `data`, in which case the tokens are in the order of the run
    (data.token_order) with their counts in the training split; or a tokenizer.json, or the folder of a model with one.
    The columns are separated by tabs: rank, id, the text as a JSON string, the place of a digit if the tokenizer has
    places (data.digits=abacus), count, and the share of the training split that the tokens up to this one make up.
    """
    with reported_errors():
        from threadloom.stages.tools.tokens.listing import VocabularyListing, columns_of

        listing = VocabularyListing.of(path)
        columns = columns_of(listing)
        write_output("\t".join(column.name for column in columns))
        lines = ("\t".join(column.text(listing, rank) for column in columns) for rank in range(len(listing)))
        shown = islice(lines, first)
        while block := list(islice(shown, _LINES)):
            write_output("\n".join(block))
