"""The command `threadloom prepare`."""

import shlex
from functools import partial
from pathlib import Path

import click

from threadloom.stages.console import write_output
from threadloom.stages.tools.common import (
    STDLIB,
    changed_config,
    config_options,
    named_config,
    reported_errors,
    tokenizer_option,
    with_tokenizer,
)


@click.command("prepare")
@config_options
@click.option(
    "--text", "texts", multiple=True, metavar="FILE_OR_DIR",
    help=f"Text to prepare; - is standard input. Repeatable. '{STDLIB}' (default): the source of Python's library.",
)  # fmt: skip
@tokenizer_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of the prepared text.")
@click.option("--force", is_flag=True, help="Prepare a text that does not fit into the available memory.")
def prepare(
    *,
    config_name: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    texts: tuple[str, ...],
    tokenizer: Path | None,
    out: Path,
    force: bool,
) -> None:
    """Tokenise a text into a folder, and report on its documents and tokens.

    `threadloom train --data FOLDER` then begins at once. The settings data.* and model.vocab_size decide how the text
    is read and tokenised. The report is printed, and written to report.json in the folder. A command that was stopped,
    or killed, goes on where it was when it is started again; if another process prepares a text in the same folder, it
    waits. A folder that is up to date is not prepared again.
    """
    with reported_errors(partial(_remaining, out)):
        from threadloom.stages.tools.prepare.preparation import prepare_folder, report_text

        config = changed_config(with_tokenizer(named_config(config_name), tokenizer), overrides, steps, texts)
        report = prepare_folder(config, out, force=force)
        write_output(report_text(report))
        write_output(f"train on it: threadloom train --data {shlex.quote(str(out))} --out RUN")


def _remaining(out: Path) -> str:
    return f"; what is complete in {out} is kept: start the same command again to go on"
