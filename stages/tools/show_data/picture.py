"""Sequences as a PNG picture, in lines of text."""

import io
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from threadloom.stages.tools.show_data.lines import Line, cells, lines_of
from threadloom.stages.tools.show_data.segments import Kind, ShownSequence

if TYPE_CHECKING:  # Matplotlib takes 60 MB
    from matplotlib.axes import Axes

_COLUMNS, _POINTS, _DPI = 100, 10.0, 130
_CELL, _ROW = 0.602 * _POINTS / 72, 1.55 * _POINTS / 72  # inches: DejaVu Sans Mono is 0.602 em wide
_MARGIN = 0.3
_MOST_LINES = 400
"""Lines of a picture; more would be too high to look at."""
_INK, _FAINT, _MARK = "#1f2937", "#8b93a1", "#dbeafe"
_COLOURS = {Kind.SPECIAL: "#b4348f", Kind.BORDER: "#b45309", Kind.PADDING: "#b45309"}


def picture_of(sequences: Iterable[ShownSequence]) -> bytes:
    """Return the picture; what does not fit on it is left out, and said."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines: list[Line | str] = ["shaded: counts in the loss; purple: special token; ↵ line end; → tab"]
    for shown in sequences:
        lines += ["", shown.title, *lines_of(shown.segments, _COLUMNS, marks=False)]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"... and {len(lines) - _MOST_LINES:,} more lines"]
    width, height = _COLUMNS * _CELL + 2 * _MARGIN, len(lines) * _ROW + 2 * _MARGIN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-_MARGIN / _CELL, _COLUMNS + _MARGIN / _CELL)
    axes.set_ylim(len(lines) + _MARGIN / _ROW, -_MARGIN / _ROW)
    for row, line in enumerate(lines):
        if isinstance(line, str):
            _write(axes, row, 0, line, _INK, bold=bool(row))
        else:
            _draw_line(axes, row, line)
    out = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"text.hinting": "none"}):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the font shows a box instead
        figure.savefig(out, format="png")
    return out.getvalue()


def _draw_line(axes: "Axes", row: int, line: Line) -> None:
    from matplotlib.patches import Rectangle

    column = 0
    for run in line:
        size = sum(map(cells, run.text))
        if run.counts:
            axes.add_patch(Rectangle((column, row), size, 1, color=_MARK, linewidth=0))
        _write(axes, row, column, run.text, _COLOURS.get(run.kind, _INK if run.counts else _FAINT))
        column += size


def _write(axes: "Axes", row: int, column: int, text: str, colour: str, *, bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    axes.text(
        column, row + 0.5, text, color=colour, fontsize=_POINTS, family="DejaVu Sans Mono", weight=weight, va="center",
        parse_math=False,
    )  # fmt: skip
