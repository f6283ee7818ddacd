"""Logging by loguru, configured once by the command line.

On a terminal lines are short and coloured; elsewhere (a file, a CI log) they have the date and the level, without
control characters. Each line is written to the current `sys.stderr`, which a live display replaces, so that log lines
appear above the display.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, TextIO

from loguru import logger

from threadloom.stages.console.streams import escape_controls

if TYPE_CHECKING:
    from loguru import Record

TERMINAL_FORMAT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"
PLAIN_FORMAT = "{time:YYYY-MM-DD HH:mm:ss} {level: <7} {message}"


class PeriodicLog:
    """Progress of a long operation: a line at level INFO at most every `interval` seconds, the first after as many."""

    def __init__(self, interval: float = 5.0) -> None:
        self._interval, self._begin = interval, time.monotonic()
        self._due = self._begin + interval

    @property
    def seconds(self) -> float:
        """Seconds since the operation began."""
        return time.monotonic() - self._begin

    def __call__(self, message: str, *values: object) -> None:
        """Log the message if it is due."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            logger.info(message, *values)


class LogLevel(Enum):
    """The minimum level of log lines. The value is loguru's name, and that of the command-line option."""

    DEBUG = "DEBUG"  # choices and timings for debugging
    INFO = "INFO"  # detected machine, chosen settings, progress, written files
    WARNING = "WARNING"  # problems that do not stop the command
    ERROR = "ERROR"


def configure(level: LogLevel = LogLevel.INFO, stream: TextIO | None = None) -> None:
    """Write log lines of at least `level` to `stream`, by default standard error. Replaces any earlier configuration.

    Control characters of a message, such as those of a file name, are escaped. Tracebacks show the values of variables
    at level DEBUG only, because a value may be a whole text. A line that cannot be written, to a closed terminal or a
    full disk, is dropped: no command fails because of it.
    """
    coloured = _is_terminal(stream or sys.stderr) and not os.environ.get("NO_COLOR")

    def write(line: str) -> None:
        target = stream or sys.stderr
        with contextlib.suppress(OSError, ValueError):
            target.write(line)
            target.flush()

    logger.remove()
    logger.configure(patcher=_escape)
    logger.add(
        write,
        level=level.value,
        format=TERMINAL_FORMAT if coloured else PLAIN_FORMAT,
        colorize=coloured,
        backtrace=False,
        diagnose=level is LogLevel.DEBUG,
    )


@contextlib.contextmanager
def logged_messages() -> Iterator[None]:
    """Log the messages of libraries in the block: Python warnings, and records of `logging` at level WARNING or above.

    Without it both are raw lines on standard error.
    """

    def log(message: Warning | str, *_: object, **__: object) -> None:
        logger.warning("{}", message)

    handler = _FromLogging()
    logging.getLogger().addHandler(handler)
    before, warnings.showwarning = warnings.showwarning, log
    try:
        yield
    finally:
        warnings.showwarning = before
        logging.getLogger().removeHandler(handler)


class _FromLogging(logging.Handler):
    """Passes records of `logging` on; the traceback of a record is logged at level DEBUG."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.log("ERROR" if record.levelno >= logging.ERROR else "WARNING", "{}", record.getMessage())
        if record.exc_info:
            logger.opt(exception=record.exc_info).debug("traceback")


def _escape(record: "Record") -> None:
    record["message"] = escape_controls(record["message"])


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
