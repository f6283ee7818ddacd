"""The table and the picture of `benchmarks.crystalline`."""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from benchmarks.crystalline_results import Difference, Results
from benchmarks.crystalline_rows import BASELINE, Variant, variants_of
from benchmarks.results import FAINT, INK
from threadloom.stages.run import COLOURS, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADINGS = (
    "row", "form", "claimed", "ceiling of the speed", "measured speed", "loss at equal updates",
    "loss at equal seconds", "seeds",
)  # fmt: skip
UNKNOWN = "not measured"


def markdown_table(results: Results, config: str, precision: str) -> str:
    """Return the table of one configuration; losses are differences from the plain training."""
    plain = results.losses(config, Variant(BASELINE), precision, None)
    updates = results.updates(config, precision)
    title = f"`{config}`, {precision}: nothing measured"
    if plain and updates:
        title = (
            f"`{config}`, {precision}, {updates:,} updates: the plain training ends at {mean(plain.values()):.4f} "
            f"(mean of seeds {', '.join(map(str, sorted(plain)))})"
        )
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *_rows(results, config, precision)]
    return "\n".join([title, "", *("| " + " | ".join(cells) + " |" for cells in rows), ""])


def _rows(results: Results, config: str, precision: str) -> Iterator[list[str]]:
    for row, variant in variants_of(config):
        if row is None:
            continue
        speed = results.speed(config, variant, precision)
        equal = results.difference(config, variant, precision)
        yield [
            row.name,
            variant.name,
            row.claim,
            f"{row.ceiling[config]:.2f}",
            f"{speed.median:.2f} ({min(speed.ratios):.2f} to {max(speed.ratios):.2f})" if speed else UNKNOWN,
            _loss(equal),
            _loss(_at_equal_seconds(results, config, variant, precision)),
            str(equal.seeds) if equal else "0",
        ]


def _at_equal_seconds(results: Results, config: str, variant: Variant, precision: str) -> Difference | None:
    ratio, updates = results.ratio(config, variant, precision), results.updates(config, precision)
    if ratio is None or updates is None:
        return None
    return results.difference(config, variant, precision, round(updates * ratio))


def _loss(difference: Difference | None) -> str:
    if difference is None:
        return UNKNOWN
    error = "" if math.isnan(difference.error) else f" ± {difference.error:.4f}"
    return f"{difference.mean:+.4f}{error}"


def write_plot(results: Results, config: str, precision: str, folder: Path) -> Path | None:
    """Draw speed against loss of the variants that have both, and return the file; None if there are none."""
    points = []
    for row, variant in variants_of(config):
        speed, loss = results.speed(config, variant, precision), results.difference(config, variant, precision)
        if row is not None and speed is not None and loss is not None:
            points.append((row.name, variant.name, speed.ratios, loss))
    if not points:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.6), dpi=130, facecolor="white", layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(point[0] for point in points))
    for group, colour in zip(groups, COLOURS, strict=False):
        for of_group, name, ratios, loss in points:
            if of_group == group:
                _draw(axes, name, ratios, loss, colour)
        axes.plot([], [], "o", color=colour, label=group)
    axes.axvline(1.0, color=FAINT, zorder=0)
    axes.axhline(0.0, color=FAINT, zorder=0)
    axes.plot([1.0], [0.0], "s", color=INK, label="plain")
    axes.set_xlabel("speed relative to the plain training (right is faster)")
    axes.set_ylabel("validation loss minus that of the plain training, equal updates (lower is better)")
    axes.set_title(f"{config}, {precision}: what each option gives and costs", loc="left", color=INK, fontsize=12)
    style_axes(axes, "both")
    axes.margins(0.12)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=9)
    path = folder / f"crystalline-{config}.png"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw(axes: "Axes", name: str, ratios: list[float], loss: Difference, colour: str) -> None:
    middle = sorted(ratios)[len(ratios) // 2]
    error = 0.0 if math.isnan(loss.error) else loss.error
    axes.errorbar(
        [middle], [loss.mean], yerr=[error], xerr=[[middle - min(ratios)], [max(ratios) - middle]],
        fmt="o", color=colour, elinewidth=1.0,
    )  # fmt: skip
    axes.annotate(name, (middle, loss.mean), xytext=(6, 4), textcoords="offset points", fontsize=8, color=INK)
