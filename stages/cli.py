"""The command line. Commands import numerical libraries only when they run, so that `--help` is fast."""

import threading
from typing import Any

import click

from threadloom.stages.console import (
    LogLevel,
    StopSignals,
    configure,
    discard_unwritable,
    logged_messages,
    prepare_streams,
    spare_address_space,
)
from threadloom.stages.tools.bench import bench
from threadloom.stages.tools.certify import certify
from threadloom.stages.tools.doctor import doctor
from threadloom.stages.tools.evaluate import evaluate
from threadloom.stages.tools.export import export
from threadloom.stages.tools.grow import grow
from threadloom.stages.tools.merge import merge
from threadloom.stages.tools.prepare import prepare
from threadloom.stages.tools.reduce import reduce
from threadloom.stages.tools.sample import sample
from threadloom.stages.tools.show_data import show_data
from threadloom.stages.tools.tokens import tokens
from threadloom.stages.tools.train import train_command
from threadloom.stages.tools.tune import tune


class CommandLine(click.Group):
    """The group of all commands. Standard streams are prepared before anything is parsed or printed."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit with its status."""
        prepare_streams()
        spare_address_space()
        try:
            return super().main(*args, **kwargs)
        finally:
            discard_unwritable()


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="threadloom")
@click.option("--log-level", type=click.Choice([level.value for level in LogLevel]), default="INFO", show_default=True)
def main(log_level: str) -> None:
    """Train small GPT language models on the CPU, as a pipeline of threads.

    \b
    threadloom train --config nanogpt-cpu --text book.txt --out runs/book
    threadloom sample runs/book --prompt "Once upon a time"
    """
    configure(LogLevel(log_level))
    context = click.get_current_context()
    context.with_resource(logged_messages())
    if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
        context.obj = context.with_resource(StopSignals())


COMMANDS = (
    prepare, train_command, sample, evaluate, export, merge, grow, reduce, tokens, show_data, certify, tune, doctor,
    bench,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)
