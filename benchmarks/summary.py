"""A summary of several comparisons: `python -m benchmarks.summary runs/*/throughput.json --out runs/summary`.

Reads the results of `benchmarks.throughput` and writes the tables of the README, which compare the fastest modes of
both sides in the same precision, and one plot of all of them.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.results import SideResult, ThroughputComparison, comparison_figure, format_spread
from threadloom.stages.config import Precision

PRECISIONS = frozenset(precision.value for precision in Precision)
"""Words in the name of a side that is not in float32."""


def read_comparisons(path: Path) -> tuple[str, list[ThroughputComparison]]:
    """Return the machine and the comparisons of a results file."""
    content = json.loads(path.read_text("utf-8"))
    comparisons = [
        ThroughputComparison(
            found["config"], found["flops_per_token"], found["checked"], [SideResult(**s) for s in found["sides"]]
        )
        for found in content["comparisons"]
    ]
    return content["machine"], comparisons


def of_precision(comparison: ThroughputComparison, low: bool) -> tuple[list[SideResult], SideResult] | None:
    """Return the peers and threadloom's fastest side in float32, or with `low` in bfloat16; None if one is missing.

    Other precisions of threadloom are omitted, because no peer supports them.
    """
    wanted = {Precision.BF16.value} if low else set()
    sides = [side for side in comparison.sides if PRECISIONS.intersection(side.name.split()) == wanted]
    peers, ours = [side for side in sides if not side.ours], [side for side in sides if side.ours]
    return (peers, max(ours, key=lambda side: side.median)) if peers and ours else None


def _share(mine: SideResult, other: SideResult) -> str:
    share = mine.peak_bytes / other.peak_bytes
    return f"{mine.peak_bytes / 1e9:.2f} of {other.peak_bytes / 1e9:.2f} GB ({share:.2f})"


def summary_table(comparisons: Sequence[ThroughputComparison], low: bool) -> str:
    """Return a table with one row per configuration: all peers, threadloom, the ratio to the best peer, memory."""
    lines: list[str] = []
    for comparison in comparisons:
        found = of_precision(comparison, low)
        if found is None:
            continue
        peers, mine = found
        if not lines:
            last = ("times our float32", "peak memory, of our float32's") if low else ("peak memory, of eager's",)
            names = [f"{side.name}, tokens/s" for side in (*peers, mine)]
            headings = ["config", *names, "times the fastest of them", *last]
            lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
        best = max(peers, key=lambda side: side.median)
        cells = [f"`{comparison.config}`", *(f"{side.median:,.0f}" for side in (*peers, mine))]
        cells.append(format_spread(comparison.ratios(mine, best)))
        full = of_precision(comparison, low=False)
        if low and full:
            cells += [f"{statistics.median(comparison.ratios(mine, full[1])):.2f}", _share(mine, full[1])]
        elif not low:
            cells.append(_share(mine, peers[0]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/summary"), show_default=True)
def main(files: tuple[Path, ...], out: Path) -> None:
    """Write summary.md and summary.png of results of benchmarks.throughput, in the order of the files."""
    machines, comparisons = zip(*map(read_comparisons, files), strict=True)
    if len(set(machines)) > 1:
        raise click.ClickException(f"results of different machines cannot be compared: {sorted(set(machines))}")
    together = [comparison for found in comparisons for comparison in found]
    out.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(filter(None, (summary_table(together, low) for low in (False, True))))
    (out / "summary.md").write_text(text + "\n", "utf-8")
    comparison_figure(together, machines[0]).savefig(out / "summary.png")
    click.echo(text)


if __name__ == "__main__":
    main()
