"""Options, error messages and exit status that the commands share. Importing it loads no numerical library."""

import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from loguru import logger

from threadloom.stages.console import Stopped, StopSignals, WorkerError

if TYPE_CHECKING:
    from rich.console import Console

    from threadloom.stages.config import Config

STDLIB = "stdlib"
"""The name, as a text, of the source of Python's standard library."""
DEFAULT_CONFIG = "nanogpt-tuned"


class Seconds(click.ParamType[float]):
    """A finite number of seconds of at least `least`; also 90m, 2h, 1d, MM:SS, HH:MM:SS or D-HH:MM:SS as in SLURM."""

    name = "time"
    _UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # noqa: RUF012 - constant
    _LONGEST = 1e10  # over 300 years; times on the monotonic clock stay exact
    _CLOCK = re.compile(r"(?:(?:(?P<d>\d+)-)?(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)")

    def __init__(self, least: float = 0.001) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number of seconds; fail for anything else."""
        text = str(value).strip().lower()
        if clock := self._CLOCK.fullmatch(text):
            seconds = sum(self._UNITS[unit] * float(count or 0) for unit, count in clock.groupdict().items())
        else:
            number = text[:-1] if text[-1:] in self._UNITS else text
            try:
                seconds = float(number) * (self._UNITS[text[-1]] if number != text else 1.0)
            except ValueError:
                seconds = math.nan
        if not self._least <= seconds <= self._LONGEST:
            expected = f"at least {self._least:g} and finite, in seconds or such as 90m, 2h, 1:30:00"
            self.fail(f"expected a time of {expected}; got {value!r}", param, ctx)
        return seconds


def stop_signals() -> StopSignals | None:
    """Return the signal handlers of the running command; None in a thread that may not set them."""
    return click.get_current_context().find_object(StopSignals)


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
            help="nanogpt-tuned (default), nanogpt-pipelined, small, nanogpt-cpu, shakespeare, optimized, large, gpt2, "
            "llama-small, smollm2-135m, qwen3-0.6b, a JSON file, a run directory, or the folder of a model.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def tokenizer_option(command: Any) -> Any:
    """Add the option for the tokenizer of another model."""
    return click.option(
        "--tokenizer", type=click.Path(path_type=Path), metavar="PATH",
        help="Encode the text with this tokenizer: a tokenizer.json, a vocab.json with merges.txt, or a folder.",
    )(command)  # fmt: skip


def base_option(command: Any) -> Any:
    """Add the option for the model that the adapters of a run belong to."""
    return click.option(
        "--base", type=click.Path(path_type=Path), metavar="FOLDER",
        help="Of adapters: the model that they belong to.  [default: where they were trained from]",
    )(command)  # fmt: skip


def average_option(command: Any) -> Any:
    """Add the option for the average of the weights."""
    return click.option("--average", is_flag=True,
                        help="Of a run with optimizer.ema: the moving average of the weights.")(command)  # fmt: skip


def named_config(name: str | None) -> "Config":
    """Return the shipped configuration of a name, or that of a JSON file or run directory; by default nanogpt-tuned."""
    from threadloom.stages.resolve import load_config

    return load_config(name or DEFAULT_CONFIG)


def changed_config(
    config: "Config", overrides: tuple[str, ...], steps: int | None = None, texts: tuple[str, ...] = ()
) -> "Config":
    """Return the configuration with the values of --set, --steps and --text. Raises ConfigError."""
    import msgspec

    from threadloom.stages.data import absolute_text
    from threadloom.stages.resolve import apply_overrides, validate

    if steps is not None:
        overrides = (*overrides, f"steps={steps}")
    config = apply_overrides(config, overrides)
    files = tuple(text for text in texts if text != STDLIB) if texts else config.data.text
    if files or texts:
        absolute = tuple(map(absolute_text, files))
        config = msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, text=absolute))
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


def with_tokenizer(config: "Config", path: Path | None) -> "Config":
    """Return the configuration with the tokenizer of --tokenizer, if it is given."""
    import msgspec

    from threadloom.stages.config import TokenizerKind
    from threadloom.stages.data import absolute_text

    if path is None:
        return config
    pretrained = {"tokenizer": TokenizerKind.PRETRAINED, "tokenizer_path": absolute_text(path)}
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, **pretrained))


def with_prepared(config: "Config", folder: Path | None) -> "Config":
    """Return the configuration with the settings of the prepared text of --data, if it is given; raises DataError."""
    import msgspec

    from threadloom.stages.data import read_settings, require_tokenizer_of

    if folder is None:
        return config
    found = read_settings(folder)
    require_tokenizer_of(config.data, folder)
    model = (
        config.model if found.vocab_size is None else msgspec.structs.replace(config.model, vocab_size=found.vocab_size)
    )
    return msgspec.structs.replace(config, data=found.data, model=model)


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
    """Log errors that the user can correct as one line and exit with status 1.

    After Ctrl-C the status is 130, after SIGTERM 143, after SIGHUP 129. `remains` returns a text on the state that a
    stopped command leaves.
    """
    from threadloom.pipeline import StageFailure
    from threadloom.stages.config import InputError

    signals = stop_signals()
    try:
        with signals.raising(remains) if signals else nullcontext():
            yield
    except KeyboardInterrupt as interrupt:
        stopped = interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)
        logger.warning("stopped by {}{}", stopped.name, remains())
        sys.exit(stopped.status)
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        sys.exit(1)
    except StageFailure as failure:
        cause = failure.__cause__
        logger.opt(exception=cause).debug("traceback")
        where = f"stage {failure.stage!r}, {failure.item}"
        logger.error("{}: {} [{}]", type(cause).__name__, cause, where)
        sys.exit(1)
    except (InputError, OSError, MemoryError, RuntimeError, ImportError) as error:
        sentence = limit_message(error)
        if sentence is None and not isinstance(error, InputError | OSError | WorkerError):
            raise
        logger.opt(exception=error).debug("traceback")
        logger.error("{}", sentence or error)
        sys.exit(1)


def limit_message(error: BaseException) -> str | None:
    """Return a sentence on the limit of the system that an error comes from, with a remedy; None if it is another."""
    if isinstance(error, MemoryError):
        return (
            f"the system grants no more memory ({str(error) or 'no details'}). Hint: raise the limit (`ulimit -v`, "
            "that of the container), or choose a smaller micro_batch, batch_size or model"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return (
            "the system grants no more threads. Hint: raise the limit on processes (`ulimit -u`, that of the "
            "container) or on memory (`ulimit -v`), or set fewer threads, such as threads.forward=1 threads.backward=1"
        )
    if isinstance(error, ImportError | OSError):
        for cause in (error, error.__context__):  # llvmlite reports a library that cannot be mapped as one not found
            if "failed to map" in str(cause) or "cannot allocate memory" in str(cause).lower():
                return f"a library cannot be loaded for lack of memory ({cause}). Hint: raise the limit (`ulimit -v`)"
    return None
