"""Options, error messages and exit status that the commands share. Importing it loads no numerical library."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click
from loguru import logger

if TYPE_CHECKING:
    from rich.console import Console

    from threadloom.stages.config import Config

STDLIB = "stdlib"
"""The name, as a text, of the source of Python's standard library."""
DEFAULT_CONFIG = "nanogpt-cpu"


class Terminated(KeyboardInterrupt):
    """SIGTERM, sent by `docker stop` and systemd: the command ends as after Ctrl-C, with another exit status."""


def terminate(number: int, frame: object) -> NoReturn:
    """Raise Terminated; the handler of SIGTERM."""
    raise Terminated


def config_options(command: Any) -> Any:
    """Add the options that select a configuration and change its settings."""
    for option in (
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE",
            help="Change one setting, such as delay=2, threads.backward=2 or optimizer.lr=3e-4. Repeatable.",
        ),
        click.option("--steps", type=click.IntRange(min=1), help="Optimizer updates; short for --set steps=N."),
        click.option(
            "--config", "config_name", metavar="NAME_OR_FILE",
            help="nanogpt-cpu (default), shakespeare, small, optimized, large, gpt2, a JSON file, or a run directory.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def named_config(name: str | None) -> "Config":
    """Return the shipped configuration of a name, or that of a JSON file or run directory; by default nanogpt-cpu."""
    from threadloom.stages.resolve import load_config

    return load_config(name or DEFAULT_CONFIG)


def changed_config(
    config: "Config", overrides: tuple[str, ...], steps: int | None = None, texts: tuple[str, ...] = ()
) -> "Config":
    """Return the configuration with the values of --set, --steps and --text. Raises ConfigError."""
    import msgspec

    from threadloom.stages.resolve import apply_overrides, validate

    if steps is not None:
        overrides = (*overrides, f"steps={steps}")
    config = apply_overrides(config, overrides)
    if texts:
        files = tuple(text for text in texts if text != STDLIB)
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=files))
    validate(config)
    return config


def text_argument(argument: str) -> str:
    """Return a command-line argument as text that UTF-8 can encode.

    Bytes that the locale cannot decode, which Python passes as lone surrogates, are read as UTF-8; those that are not
    UTF-8 either become U+FFFD.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "replace")
    return argument


def report_console(least: int, in_files: int) -> "Console":
    """Return a console for the report of a command.

    On a terminal it has the terminal's width, but at least `least` columns: a narrower terminal wraps the lines, which
    keeps all figures of a table. In a file it has `in_files` columns.
    """
    from rich.console import Console

    from threadloom.pipeline import is_redrawable

    console = Console()
    return Console(width=max(least, console.width) if is_redrawable(console) else in_files)


@contextmanager
def reported_errors(remains: Callable[[], str] = str) -> Iterator[None]:
    """Log errors that the user can correct as one line and exit with status 1; after Ctrl-C 130, after SIGTERM 143.

    `remains` returns a text on the state that an interrupted command leaves.
    """
    from threadloom.pipeline import StageFailure
    from threadloom.stages.config import InputError

    try:
        yield
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        logger.warning("stopped by {}{}", "SIGTERM" if terminated else "Ctrl-C", remains())
        sys.exit(143 if terminated else 130)
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        sys.exit(1)
    except StageFailure as failure:
        cause = failure.__cause__
        logger.opt(exception=cause).debug("traceback")
        where = f"stage {failure.stage!r}, {failure.item}"
        logger.error("{}: {} [{}]", type(cause).__name__, cause, where)
        sys.exit(1)
    except (InputError, OSError) as error:
        logger.opt(exception=error).debug("traceback")
        logger.error("{}", error)
        sys.exit(1)
