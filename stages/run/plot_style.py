"""Colours and axes of the plots."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # Matplotlib takes 60 MB and is imported by the functions that draw
    from matplotlib.axes import Axes

COLOURS = ("#2563eb", "#dc6803", "#0f9d75", "#b4348f", "#6d5bd0", "#8a6d3b")
INK, FAINT = "#1f2937", "#d7dce3"
LONGEST_TITLE = 80
"""Characters of a title; more would not fit."""


def style_axes(axes: "Axes", grid: Literal["x", "y", "both"] = "y") -> None:
    """Draw axes with a faint grid and without a frame."""
    axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.yaxis.label.set_color(INK)
    axes.xaxis.label.set_color(INK)
