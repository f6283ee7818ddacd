"""Log lines: plain in files, coloured on a terminal, and written to the current standard error."""

import io
import re
import sys
from collections.abc import Iterator

import pytest
from loguru import logger

from threadloom.stages.console.log import LogLevel, configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore loguru's default: one sink on standard error."""
    yield
    logger.remove()
    logger.add(sys.stderr)


def test_a_plain_line_has_the_date_the_level_and_no_control_character() -> None:
    out = io.StringIO()
    configure(stream=out)
    logger.info("loss {:.2f} <b>", 1.5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO    loss 1\.50 <b>\n", out.getvalue())


def test_a_terminal_gets_colour_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    configure(stream=coloured)
    logger.warning("careful")
    monkeypatch.setenv("NO_COLOR", "1")
    configure(stream=plain)
    logger.warning("careful")
    assert "\x1b[" in coloured.getvalue()
    assert "\x1b[" not in plain.getvalue()


def test_lines_below_the_level_are_dropped() -> None:
    out = io.StringIO()
    configure(LogLevel.WARNING, out)
    logger.info("quiet")
    logger.error("loud")
    assert "quiet" not in out.getvalue()
    assert "loud" in out.getvalue()


def test_a_display_that_replaces_standard_error_gets_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    taken = io.StringIO()
    monkeypatch.setattr(sys, "stderr", taken)
    logger.info("above the display")
    assert "above the display" in taken.getvalue()


def test_an_error_shows_values_of_variables_only_when_debugging() -> None:
    for level, shown in ((LogLevel.INFO, False), (LogLevel.DEBUG, True)):
        out = io.StringIO()
        configure(level, out)
        secret = "a whole text"
        try:
            raise ValueError(secret[:1])
        except ValueError:
            logger.exception("failed")
        assert "ValueError" in out.getvalue()
        assert ("'a whole text'" in out.getvalue()) is shown
