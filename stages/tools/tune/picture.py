"""The picture of a search: the speed of every choice that was tried against the memory that it takes.

The picture is optional: a failure to draw or to write it is a warning.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loguru import logger

from threadloom.kernels.compiling import write_problem
from threadloom.pipeline import render_png
from threadloom.pipeline.tuning import GraphSizes, GraphTuning
from threadloom.stages.config import InputError
from threadloom.stages.resolve import TunedSettings, format_settings
from threadloom.stages.run import COLOURS, INK, LONGEST_TITLE, style_axes
from threadloom.stages.storage import atomic_write
from threadloom.stages.tools.tune.search import SearchResult

if TYPE_CHECKING:  # Matplotlib takes 60 MB and is imported by the functions that draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Choice = TypeVar("Choice", TunedSettings, GraphSizes)

MARKERS = ("o", "^", "v", "D", "P", "X", "<", ">", "h", "p")
TITLE_LINE = 100
"""Characters of a line below the title."""


@dataclass(frozen=True)
class PlottedChoice:
    """One choice in the picture."""

    group: str
    """What was varied when it was first tried: one entry of the legend."""
    size: float
    """Position on the horizontal axis."""
    speeds: tuple[float, ...]
    """Speeds of all of its trials."""

    @property
    def speed(self) -> float:
        """The median speed."""
        return statistics.median(self.speeds)


@dataclass(frozen=True)
class TuningPicture:
    """The content of a picture."""

    title: str
    subtitle: str
    choices: tuple[PlottedChoice, ...]
    """All choices except the defaults."""
    default: PlottedChoice
    default_name: str
    chosen: PlottedChoice
    """The choice, which is the default if it was kept."""
    x_label: str
    y_label: str


def picture_of_search(result: SearchResult, name: str) -> TuningPicture | None:
    """Return the picture of the tuning of a training; None if nothing was compared or the memory is unknown."""
    speeds: dict[TunedSettings, list[float]] = {}
    megabytes: dict[TunedSettings, float] = {}
    for each in result.measured:
        if each.trial.memory is None:
            return None
        speeds.setdefault(each.choice, []).append(each.trial.tokens_per_s)
        megabytes[each.choice] = each.trial.memory / 1e6
    groups = _first_groups((row.choice, row.dimension) for row in result.compared)
    found = {
        choice: PlottedChoice(groups.get(choice, ""), megabytes[choice], tuple(rates))
        for choice, rates in speeds.items()
    }
    kept = result.chosen == result.default
    return _picture(
        _title(f"{name}: {result.trials} trials", result.ratio),
        "the defaults are kept" if kept else f"chosen: {format_settings(result.chosen.differences(result.default))}",
        found, result.default, result.chosen, "the defaults", "memory of a run, as planned (MB)",
        "tokens per second (median, range)",
    )  # fmt: skip


def picture_of_graph(result: GraphTuning, name: str) -> TuningPicture | None:
    """Return the picture of the tuning of a graph; None if nothing was compared.

    Its memory is unknown; the number of items that the graph can hold at once takes its place.
    """
    speeds: dict[GraphSizes, list[float]] = {}
    for sizes, score in result.measured:
        if score:
            speeds.setdefault(sizes, []).append(score)
    groups = _first_groups(
        (row.choice, " and ".join(size.name for size in row.choice.differences(row.base))) for row in result.tried
    )
    found = {
        sizes: PlottedChoice(groups.get(sizes, ""), float(sum(sizes.total)), tuple(rates))
        for sizes, rates in speeds.items()
    }
    kept = result.chosen == result.declared
    chosen = ", ".join(
        f"{size.name} {size.workers} / {size.capacity}" for size in result.chosen.differences(result.declared)
    )
    return _picture(
        _title(f"graph {name}: {result.trials} trials", None if kept or not result.final else result.final.ratio),
        "the declared sizes are kept" if kept else f"chosen (workers / capacity): {chosen}",
        found, result.declared, result.chosen, "as declared", "items in the graph at most (workers and capacities)",
        "items per second (median, range)",
    )  # fmt: skip


def check_picture_path(path: Path) -> None:
    """Raise InputError for a file that is not a PNG; log a warning if it cannot be written, before the search."""
    if path.suffix.lower() != ".png":
        raise InputError("--picture", "a file that ends with .png", str(path))
    if problem := write_problem(path.absolute().parent):
        logger.warning("{} will not be written: {}", path, problem)


def write_picture(picture: TuningPicture | None, path: Path) -> bool:
    """Draw and write a picture; log a warning and return False if that fails, or there is nothing to draw."""
    if picture is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, render_png(partial(tuning_figure, picture)))
    except Exception as error:  # of Matplotlib or its fonts, of the disk, or too little memory
        logger.opt(exception=error).debug("traceback")
        logger.warning("{} was not written; the result is not affected: {}: {}", path, type(error).__name__, error)
        return False
    return True


def tuning_figure(picture: TuningPicture) -> "Figure":
    """Return the picture as a Figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(9.0, 5.6), dpi=130, facecolor="white", layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(choice.group for choice in picture.choices))
    for index, group in enumerate(groups):
        members = [choice for choice in picture.choices if choice.group == group]
        _draw_choices(axes, members, group, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
    _draw_choices(axes, [picture.default], picture.default_name, INK, "s")
    axes.axhline(picture.default.speed, color=INK, linewidth=0.9, linestyle=(0, (4, 4)), alpha=0.6)
    axes.plot(
        [picture.chosen.size], [picture.chosen.speed], linestyle="", marker="o", markersize=15,
        markerfacecolor="none", markeredgecolor="#dc2626", markeredgewidth=2.0, label="the choice",
    )  # fmt: skip
    style_axes(axes, "both")
    axes.margins(x=0.08, y=0.10)
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    figure.legend(
        loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9, title="first tried by varying",
        title_fontproperties={"size": 9}, alignment="left", labelspacing=0.75,
    )  # fmt: skip
    subtitle = _shortened(picture.subtitle, TITLE_LINE)
    axes.set_title(subtitle, loc="left", color=INK, fontsize=9, pad=8)
    figure.suptitle(
        _shortened(picture.title, LONGEST_TITLE), x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold"
    )
    return figure


def _draw_choices(axes: "Axes", choices: Sequence[PlottedChoice], label: str, colour: str, marker: str) -> None:
    """Draw choices with the range of their trials."""
    for choice in choices:
        axes.plot([choice.size] * 2, [min(choice.speeds), max(choice.speeds)], color=colour, linewidth=1.2, alpha=0.35)
    axes.plot(
        [choice.size for choice in choices], [choice.speed for choice in choices], linestyle="", color=colour,
        marker=marker, markersize=6.5, markeredgecolor="white", markeredgewidth=0.6, label=label,
    )  # fmt: skip


def _title(text: str, ratio: float | None) -> str:
    return text if ratio is None else f"{text}, the choice is {ratio:.2f} times as fast"


def _picture(
    title: str,
    subtitle: str,
    found: Mapping[Choice, PlottedChoice],
    default: Choice,
    chosen: Choice,
    default_name: str,
    x_label: str,
    y_label: str,
) -> TuningPicture | None:
    others = tuple(choice for key, choice in found.items() if key != default and choice.group)
    if not others or default not in found or chosen not in found:
        return None
    return TuningPicture(title, subtitle, others, found[default], default_name, found[chosen], x_label, y_label)


def _first_groups(pairs: Iterable[tuple[Choice, str]]) -> dict[Choice, str]:
    """Return the group of each choice: that of its first pair."""
    groups: dict[Choice, str] = {}
    for choice, group in pairs:
        groups.setdefault(choice, group)
    return groups


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
