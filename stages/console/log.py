"""What the program says while it runs: loguru, set up once by the command line.

On a terminal a line is short and coloured; elsewhere (a file, a CI log) it carries the date and the level, without any
control character. Lines go to whatever `sys.stderr` is at that moment, so that they appear above a live display, which
puts itself in its place, and are not torn by it.
"""

import os
import sys
from enum import Enum
from typing import TextIO

from loguru import logger

TERMINAL_FORMAT = "<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}"
PLAIN_FORMAT = "{time:YYYY-MM-DD HH:mm:ss} {level: <7} {message}"


class LogLevel(Enum):
    """How much is said; the value is loguru's name of the level, and what the command line takes."""

    DEBUG = "DEBUG"  # choices and timings that help to find a fault
    INFO = "INFO"  # what was detected and chosen, progress, what was written
    WARNING = "WARNING"  # what a person should know about
    ERROR = "ERROR"


def configure(level: LogLevel = LogLevel.INFO, stream: TextIO | None = None) -> None:
    """Send log lines of at least `level` to `stream`, or to standard error; replaces any earlier configuration.

    The frames of an exception are shown with the values of variables at level DEBUG only: those may be whole texts.
    """
    coloured = _is_terminal(stream or sys.stderr) and "NO_COLOR" not in os.environ

    def write(line: str) -> None:
        target = stream or sys.stderr
        target.write(line)
        target.flush()

    logger.remove()
    logger.add(
        write,
        level=level.value,
        format=TERMINAL_FORMAT if coloured else PLAIN_FORMAT,
        colorize=coloured,
        backtrace=False,
        diagnose=level is LogLevel.DEBUG,
    )


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
