"""The results of a comparison, as Markdown and as a plot: pure functions of the measurements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PEER_COLOURS = ("#8b95a5", "#c3a46b", "#5d6675", "#94743a", "#b7bec9", "#e0c9a0", "#39414e", "#6d4f1f")
OUR_COLOURS = ("#2563eb", "#0f9d75", "#b4348f", "#6d5bd0")
MAX_HORIZONTAL = 4
"""Maximum number of sides with horizontal labels above the bars; labels of more sides are vertical."""
LEGEND_COLUMNS = 4
INK, FAINT = "#1f2937", "#d7dce3"


@dataclass(frozen=True)
class SideResult:
    """The measurements of one side on one configuration."""

    name: str
    ours: bool
    tokens_per_s: list[float]
    """One value per round; the rounds of the sides alternate."""
    peak_bytes: int
    """Peak memory of the process."""
    library_bytes: int
    """Memory of the process before it built a model."""

    @property
    def median(self) -> float:
        """Median tokens per second over the rounds."""
        return statistics.median(self.tokens_per_s)


@dataclass(frozen=True)
class ThroughputComparison:
    """The results of all sides on one configuration."""

    config: str
    flops_per_token: float
    checked: str
    """The summary of the check for equal results."""
    sides: list[SideResult]

    def ratios(self, side: SideResult, base: SideResult) -> list[float]:
        """Return the ratio of the speeds of two sides, round by round."""
        return [mine / other for mine, other in zip(side.tokens_per_s, base.tokens_per_s, strict=True)]

    @property
    def peers(self) -> list[SideResult]:
        """The sides other than threadloom."""
        return [side for side in self.sides if not side.ours]

    @property
    def best_peer(self) -> SideResult | None:
        """The fastest peer, to which ratios refer."""
        return max(self.peers, key=lambda side: side.median, default=None)


def format_spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of values with their minimum and maximum, as text."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def comparison_rows(comparisons: Sequence[ThroughputComparison]) -> list[list[str]]:
    """Return the rows of the table, one per side, with the columns of `HEADINGS`."""
    found = []
    for comparison in comparisons:
        base = comparison.best_peer
        for side in comparison.sides:
            relative = base is not None and side is not base
            found.append(
                [
                    comparison.config,
                    side.name,
                    format_spread(side.tokens_per_s, 0),
                    format_spread(comparison.ratios(side, base)) if base and relative else "1" if base else "",
                    f"{side.median * comparison.flops_per_token / 1e9:,.0f}",
                    f"{side.peak_bytes / 1e9:.2f} GB",
                    f"{side.peak_bytes / base.peak_bytes:.2f}" if base else "",
                ]
            )
    return found


HEADINGS = ("config", "side", "tokens/s", "ratio to the best peer", "GFLOP/s", "peak memory", "ratio")


def comparison_markdown(comparisons: Sequence[ThroughputComparison], machine: str) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *("| " + " | ".join(row) + " |" for row in comparison_rows(comparisons)),
    ]
    notes = [
        "",
        f"{machine}. Medians of alternating rounds, with minimum and maximum in brackets; float32 unless named;",
    ]
    notes.append("peak memory of the process of each side. Checked before the measurement:")
    notes += [f"- {comparison.config}: {comparison.checked}" for comparison in comparisons]
    return "\n".join([*lines, *notes]) + "\n"


def comparison_figure(comparisons: Sequence[ThroughputComparison], machine: str) -> Figure:
    """Return the plot of the speed and the peak memory of every side, relative to the first peer."""
    drawn = Figure(figsize=(max(8.0, 2.6 + 2.3 * len(comparisons)), 6.4), dpi=130, facecolor="white")
    drawn.set_layout_engine("constrained")
    speed, memory = drawn.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.5, 1.0]})
    names = list(dict.fromkeys(side.name for comparison in comparisons for side in comparison.sides))
    colours = _colours(names, {side.name for side in comparisons[0].peers})
    width = 0.8 / max(1, len(names))
    for place, comparison in enumerate(comparisons):
        base = comparison.peers[0] if comparison.peers else comparison.sides[0]
        for side in comparison.sides:
            at = place - 0.4 + width * (names.index(side.name) + 0.5)
            ratios = comparison.ratios(side, base)
            middle = statistics.median(ratios)
            colour = colours[side.name]
            speed.bar(at, middle, 0.92 * width, color=colour, label=side.name if place == 0 else None)
            if side is not base:
                below, above = middle - min(ratios), max(ratios) - middle
                speed.errorbar(at, middle, [[below], [above]], color=INK, linewidth=1.0, capsize=2.5)
            share = side.peak_bytes / base.peak_bytes
            memory.bar(at, share, 0.92 * width, color=colour)
            vertical = len(names) > MAX_HORIZONTAL
            _label_above(speed, at, max(middle, *ratios), f"{side.median:,.0f}", vertical)
            _label_above(memory, at, share, f"{side.peak_bytes / 1e9:.2f} GB", vertical)
    style_axes(speed, f"tokens/s\nrelative to {_base_name(comparisons)}")
    style_axes(memory, "peak memory,\nrelative")
    memory.set_xticks(range(len(comparisons)), [comparison.config for comparison in comparisons], fontsize=10)
    speed.set_title("Training throughput", loc="left", color=INK, fontsize=12, fontweight="bold")
    drawn.supxlabel("\n".join(wrap(machine, 100)), color=INK, fontsize=8)
    handles, labels = speed.get_legend_handles_labels()
    drawn.legend(
        handles=handles, labels=labels,
        loc="outside upper left", ncols=LEGEND_COLUMNS, frameon=False, labelcolor=INK, fontsize=9,
    )  # fmt: skip
    return drawn


def _label_above(axes: Axes, x: float, y: float, text: str, vertical: bool) -> None:
    axes.annotate(
        text, (x, y), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8, color=INK,
        rotation=90 if vertical else 0,
    )  # fmt: skip


def _colours(names: Sequence[str], peers: set[str]) -> dict[str, str]:
    """Return a colour for each side: muted for peers, bright for threadloom."""
    muted, bright = cycle(PEER_COLOURS), cycle(OUR_COLOURS)
    return {name: next(muted if name in peers else bright) for name in names}


def _base_name(comparisons: Sequence[ThroughputComparison]) -> str:
    sides = comparisons[0].peers or comparisons[0].sides
    return sides[0].name


def style_axes(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylim(0.0, 1.2 * axes.get_ylim()[1])  # space for the labels above the bars
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
