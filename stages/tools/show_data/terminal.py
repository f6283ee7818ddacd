"""Sequences in a terminal: with colours, or with marks where there are none."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from threadloom.stages.tools.show_data.lines import lines_of
from threadloom.stages.tools.show_data.segments import Kind, ShownSequence

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {Kind.TEXT: "", Kind.SPECIAL: "bold magenta", Kind.BORDER: "yellow", Kind.PADDING: "dim yellow"}


def terminal_console() -> "Console":
    """Return a console of the terminal's width, or of 80 columns in a file or pipe."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=80)


def print_sequences(sequences: Iterable[ShownSequence], console: "Console") -> None:
    """Print sequences, each under its title."""
    from rich.text import Text

    marks = console.color_system is None
    if marks:
        legend = "⟦counts in the loss⟧, ‹special token›, ↵ line end, → tab"
    else:
        legend = "counts in the loss, [dim]does not count[/], [bold magenta]special token[/], ↵ line end, → tab"
    console.print(legend, highlight=False)
    for sequence in sequences:
        console.print()
        console.print(Text(sequence.title, style="bold underline"))
        for line in lines_of(sequence.segments, console.width, marks=marks):
            text = Text()
            for run in line:
                dim = "" if run.counts or run.kind in (Kind.BORDER, Kind.PADDING) else " dim"
                text.append(run.text, style=(_STYLES[run.kind] + dim).strip())
            console.print(text, soft_wrap=True, highlight=False)
