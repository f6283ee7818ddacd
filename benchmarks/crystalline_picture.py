"""The picture of `benchmarks.crystalline`: what was claimed, what arithmetic permits, and what was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.crystalline_results import Difference, Results, Speed
from benchmarks.crystalline_rows import Row, variants_of
from benchmarks.results import INK
from threadloom.stages.run import COLOURS, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINEAR = 0.01
"""Differences of loss up to this are drawn on a linear scale, larger ones on a logarithmic one."""


@dataclass(frozen=True)
class Line:
    """One variant in the picture."""

    name: str
    row: Row
    ceiling: float
    colour: str
    speed: Speed | None
    loss: Difference | None


def lines_of(results: Results, config: str, precision: str) -> list[Line]:
    """Return the variants of which something was measured, those of a row in one colour."""
    found: list[Line] = []
    rows: list[str] = []
    for row, variant in variants_of(config):
        speed, loss = results.speed(config, variant, precision), results.difference(config, variant, precision)
        if row is None or (speed is None and loss is None):
            continue
        if row.name not in rows:
            rows.append(row.name)
        ceiling = row.ceiling_of(config, variant)
        found.append(Line(variant.name, row, ceiling, COLOURS[rows.index(row.name) % len(COLOURS)], speed, loss))
    return found


def write_plot(results: Results, config: str, precision: str, folder: Path) -> Path | None:
    """Draw speed and loss of each variant that was measured, and return the file; None if there is none."""
    lines = lines_of(results, config, precision)
    if not lines:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 1.9 + 0.36 * len(lines)), dpi=130, facecolor="white", layout="constrained")
    speeds, losses = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1.0])
    for place, line in enumerate(reversed(lines)):
        _draw_speed(speeds, place, line)
        _draw_loss(losses, place, line)
    _label(speeds, losses, lines)
    figure.suptitle(
        f"{config}, {precision}: claimed and measured", x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold"
    )
    figure.legend(loc="outside lower left", ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    path = folder / f"crystalline-{config}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_speed(axes: "Axes", place: int, line: Line) -> None:
    if line.row.factors:
        axes.plot(line.row.factors, [place, place], color="#cbd5e1", linewidth=7, solid_capstyle="butt", zorder=1)
    axes.plot([line.ceiling], [place], "|", color=INK, markersize=13, markeredgewidth=1.6, zorder=2)
    if line.speed:
        ratios = line.speed.ratios
        axes.plot([min(ratios), max(ratios)], [place, place], color=line.colour, linewidth=1.2, zorder=3)
        axes.plot([line.speed.median], [place], "o", color=line.colour, markersize=6.5, zorder=4)


def _draw_loss(axes: "Axes", place: int, line: Line) -> None:
    if line.loss:
        error = 0.0 if math.isnan(line.loss.error) else line.loss.error
        axes.errorbar(
            [line.loss.mean], [place], xerr=[error], fmt="o", color=line.colour, markersize=6.5, elinewidth=1.2
        )


def _label(speeds: "Axes", losses: "Axes", lines: Sequence[Line]) -> None:
    """Write names, axes and the entries of the legend."""
    speeds.plot([], [], color="#cbd5e1", linewidth=7, label="claimed")
    speeds.plot([], [], "|", color=INK, markersize=13, markeredgewidth=1.6, label="most that arithmetic permits")
    speeds.plot([], [], "o", color=INK, label="measured")
    speeds.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    speeds.set_xscale("log")
    speeds.set_xticks([1, 2, 5, 10, 100], ["1", "2", "5", "10", "100"])
    speeds.minorticks_off()
    speeds.axvline(1.0, color=INK, linewidth=0.8, alpha=0.5)
    speeds.set_xlabel("times the speed of the plain training")
    losses.set_xscale("symlog", linthresh=LINEAR)
    ticks = [-0.01, 0.0, 0.01, 0.1, 1.0]
    losses.set_xticks(ticks, ["−0.01", "0", "0.01", "0.1", "1"])
    losses.minorticks_off()
    losses.margins(x=0.12)
    losses.axvline(0.0, color=INK, linewidth=0.8, alpha=0.5)
    losses.set_xlabel("validation loss minus that of the plain training\nafter equal updates, with its standard error")
    for axes in (speeds, losses):
        style_axes(axes, "x")
