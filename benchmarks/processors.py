"""The training speed on several kinds of processors in one plot: `python -m benchmarks.processors`.

Each kind of processor has a file in docs/measurements with the ratios of threadloom to the fastest mode of PyTorch in
the same precision. `--add` writes such a file from the results of `benchmarks.throughput`; the plot shows all files.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from benchmarks.results import INK, LEGEND_COLUMNS, OUR_COLOURS, ThroughputComparison, style_axes
from benchmarks.summary import of_precision, read_comparisons
from threadloom.stages.config import Precision

FOLDER = Path(__file__).parents[1] / "docs" / "measurements"
PYTORCH = "PyTorch"
"""The first word in the names of PyTorch's sides; other peers are left out of these ratios."""
PRECISIONS = (Precision.FLOAT32, Precision.BF16)


class SpeedRatio(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of threadloom on one configuration, divided by that of PyTorch's fastest mode in the same precision."""

    config: str
    precision: Precision
    median: float
    lowest: float
    highest: float


class Processor(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on one kind of processor."""

    name: str
    date: str
    command: str
    ratios: tuple[SpeedRatio, ...]

    def of(self, precision: Precision) -> dict[str, SpeedRatio]:
        """Return the ratios in a precision by the name of the configuration."""
        return {ratio.config: ratio for ratio in self.ratios if ratio.precision is precision}


def speed_ratios(comparisons: Sequence[ThroughputComparison]) -> tuple[SpeedRatio, ...]:
    """Return the ratios of comparisons, for each configuration and precision that PyTorch ran too."""
    ratios = []
    for comparison in comparisons:
        for precision in PRECISIONS:
            found = of_precision(comparison, low=precision is Precision.BF16)
            peers = [side for side in found[0] if side.name.startswith(PYTORCH)] if found else []
            if found is None or not peers:
                continue
            values = comparison.ratios(found[1], max(peers, key=lambda side: side.median))
            ratios.append(
                SpeedRatio(
                    config=comparison.config,
                    precision=precision,
                    median=round(statistics.median(values), 6),
                    lowest=round(min(values), 6),
                    highest=round(max(values), 6),
                )
            )
    return tuple(ratios)


def processors_figure(processors: Sequence[Processor]) -> Figure:
    """Return the plot of the ratios: one panel per precision, one group of bars per configuration."""
    drawn = Figure(figsize=(11.0, 6.4), dpi=130, facecolor="white")
    drawn.set_layout_engine("constrained")
    configs = list(dict.fromkeys(ratio.config for processor in processors for ratio in processor.ratios))
    for axes, precision in zip(drawn.subplots(2, 1, sharex=True), PRECISIONS, strict=True):
        _draw_panel(axes, [processor.of(precision) for processor in processors], configs)
        style_axes(axes, f"{precision.value}\ntimes {PYTORCH}'s best")
    top, bottom = drawn.axes
    bottom.set_xticks(range(len(configs)), configs, fontsize=10)
    top.set_title(
        f"Training speed relative to {PYTORCH}'s fastest mode in the same precision",
        loc="left", color=INK, fontsize=12, fontweight="bold",
    )  # fmt: skip
    names = [processor.name for processor in processors]
    bars = [container for container in top.containers if isinstance(container, BarContainer)]
    drawn.legend(
        handles=bars, labels=names,
        loc="outside upper left", ncols=LEGEND_COLUMNS, frameon=False, labelcolor=INK, fontsize=9,
    )  # fmt: skip
    return drawn


def _draw_panel(axes: Axes, kinds: Sequence[dict[str, SpeedRatio]], configs: Sequence[str]) -> None:
    width = 0.8 / max(1, len(kinds))
    for number, ratios in enumerate(kinds):
        found = [(place, ratios[config]) for place, config in enumerate(configs) if config in ratios]
        places = [place - 0.4 + width * (number + 0.5) for place, _ in found]
        axes.bar(
            places, [ratio.median for _, ratio in found], 0.92 * width, color=OUR_COLOURS[number % len(OUR_COLOURS)]
        )
        for place, (_, ratio) in zip(places, found, strict=True):
            spread = [[ratio.median - ratio.lowest], [ratio.highest - ratio.median]]
            axes.errorbar(place, ratio.median, spread, color=INK, linewidth=1.0, capsize=2.5)
            axes.annotate(
                f"{ratio.median:.2f}", (place, ratio.highest), (0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=8, color=INK,
            )  # fmt: skip


def read_processors(folder: Path) -> list[Processor]:
    """Return the processors of a folder, in the order of the files' names."""
    return [msgspec.json.decode(path.read_bytes(), type=Processor) for path in sorted(folder.glob("*.json"))]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--add", metavar="NAME", help="Name of the processor on which the files were measured; adds it.")
@click.option("--date", help="Date of the measurement; with --add.")
@click.option("--command", help="Command of the measurement; with --add.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("runs/processors.png"),
              show_default=True)  # fmt: skip
def main(
    *, files: tuple[Path, ...], add: str | None, date: str | None, command: str | None, folder: Path, out: Path
) -> None:
    """Draw the speed on every measured kind of processor; FILES are results of benchmarks.throughput to add."""
    if len({bool(files), bool(add), bool(date), bool(command)}) > 1:
        raise click.UsageError("a processor is added with files of results, --add, --date and --command, all of them")
    if add and date and command:
        comparisons = [comparison for path in files for comparison in read_comparisons(path)[1]]
        added = Processor(name=add, date=date, command=command, ratios=speed_ratios(comparisons))
        folder.mkdir(parents=True, exist_ok=True)
        name = "-".join("".join(c if c.isalnum() else " " for c in add.lower()).split())
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(added), indent=2) + b"\n")
    processors = read_processors(folder)
    if not processors:
        raise click.ClickException(f"no measurements in {folder}: add files of benchmarks.throughput, with --add")
    out.parent.mkdir(parents=True, exist_ok=True)
    processors_figure(processors).savefig(out)
    click.echo(f"{out}: {', '.join(processor.name for processor in processors)}")


if __name__ == "__main__":
    main()
