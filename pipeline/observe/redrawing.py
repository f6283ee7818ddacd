"""Terminals on which a live view can be redrawn."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def is_redrawable(console: "Console") -> bool:
    """Return True if `console` writes to a terminal whose cursor can be moved.

    FORCE_COLOR and TTY_COMPATIBLE=1 make rich treat a file as a terminal. Such a file gets colours, and no live view.
    """
    try:
        return console.is_interactive and console.file.isatty()
    except ValueError:  # a closed file
        return False
