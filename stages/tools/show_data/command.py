"""The command `threadloom show-data`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import changed_config, named_config, reported_errors

if TYPE_CHECKING:
    from threadloom.stages.tools.show_data.sequences import ShownData


@click.command(name="show-data")
@click.argument("source", metavar="CONFIG_OR_RUN")
@click.option("--text", "texts", multiple=True, metavar="FILE_OR_DIR",
              help="Text of a configuration; - is standard input. Repeatable.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a setting of a configuration. Repeatable.")  # fmt: skip
@click.option("-n", "--sequences", "count", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--update", type=click.IntRange(min=0), default=0, show_default=True,
              help="Update whose sequences are shown.")  # fmt: skip
@click.option("--validation", is_flag=True, help="Sequences of the validation part instead.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write a page (.html) or a picture (.png)."
)
def show_data(
    *, source: str, texts: tuple[str, ...], overrides: tuple[str, ...], count: int, update: int, validation: bool,
    out: Path | None,
) -> None:  # fmt: skip
    """Show sequences of the data as a training reads them.

    CONFIG_OR_RUN is a run directory, or a configuration whose text is prepared for this only. What does not count in
    the loss is dim, special tokens and the borders of documents have colours; output without colours has ⟦ ⟧ around
    what counts and ‹ › around special tokens.
    """
    with reported_errors():
        from threadloom.stages.config import ConfigError
        from threadloom.stages.storage import atomic_write
        from threadloom.stages.tools.show_data.page import page_of
        from threadloom.stages.tools.show_data.picture import picture_of
        from threadloom.stages.tools.show_data.terminal import print_sequences, terminal_console

        if out is not None and out.suffix.lower() not in (".html", ".png"):
            raise ConfigError("--out", expected="a file of the suffix .html or .png", got=str(out))
        with _opened(source, texts, overrides) as data:
            shown = list(data.evaluated(count) if validation else data.training(update, count))
            if out is None:
                print_sequences(shown, terminal_console())
                return
            content = (
                picture_of(shown) if out.suffix.lower() == ".png" else page_of(f"Data of {source}", shown).encode()
            )
            atomic_write(out, content)
            write_output(f"wrote {out}")


@contextmanager
def _opened(source: str, texts: tuple[str, ...], overrides: tuple[str, ...]) -> Iterator["ShownData"]:
    """Yield the data of a run, unless a text or settings are given, or of a configuration."""
    from threadloom.stages.storage import RunDirectory
    from threadloom.stages.tools.show_data.sequences import ShownData

    run = RunDirectory(Path(source))
    if not texts and not overrides and run.data.is_dir():
        yield ShownData.of_run(run)
    else:
        with ShownData.of_config(changed_config(named_config(source), overrides, texts=texts)) as data:
            yield data
