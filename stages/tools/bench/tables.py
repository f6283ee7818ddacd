"""The tables of `threadloom bench`, from a report and nothing else."""

import statistics
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from threadloom.stages.config import Precision
from threadloom.stages.machine import BUSY
from threadloom.stages.tools.bench.bench import BenchReport, ConfigBench, Measured
from threadloom.stages.tools.bench.roofline import KernelTime, ProductPeak

WIDE = 10_000
"""Columns that any table finds enough."""


class BenchView:
    """The report as a person reads it; coloured on a terminal, plain text elsewhere."""

    def __init__(self, report: BenchReport) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the sections."""
        report = self._report
        yield Text("Checked", "bold")
        yield Padding(Text(report.checked), (0, 0, 0, 2), expand=False)
        yield Text("\nMachine", "bold")
        yield Padding(Group(*machine_lines(report)), (0, 0, 0, 2), expand=False)
        if report.load is not None and report.load > BUSY:
            words = f"{report.load:.1f} threads of other programs were at work before this: wait, and measure again."
            yield Text(f"  {words}", "yellow")
        for bench in report.configs:
            yield from _config(report, bench)


def machine_lines(report: BenchReport) -> list[Text]:
    """Return what the machine can do at best."""
    peaks, machine = report.peaks, report.machine
    levels = ", ".join(f"{_size(level.bytes)}: {level.gb_per_s:,.0f}" for level in peaks.levels)
    return [
        Text(f"{machine.cpu}, {machine.logical_cores} cores; products by {report.product}"),
        *(Text(_product_line(peak, peaks.cores)) for peak in (peaks.product(Precision.FLOAT32), *peaks.others)),
        Text(f"memory {peaks.stream_one:,.1f} GB/s on one core, {peaks.stream_all:,.1f} on {peaks.cores}"),
        Text(f"GB/s of one core by the size of what it works on: {levels}"),
    ]


def _product_line(peak: ProductPeak, cores: int) -> str:
    return f"{peak.precision.value} product {peak.one:,.0f} GFLOP/s on one core, {peak.all:,.0f} on {cores}"


def _config(report: BenchReport, bench: ConfigBench) -> Iterator[RenderableType]:
    config, model = bench.config, bench.config.model
    yield Text(
        f"\n{config.name} in {config.precision.value}: {bench.parameters:,} parameters, "
        f"V {model.vocab_size} T {model.context} d {model.channels} "
        f"L {model.layers}, {config.sequences} sequences in micro-batches of {config.micro_batch}, "
        f"{bench.flops_per_token / 1e6:,.2f} MFLOP a token",
        "bold",
    )
    yield Padding(Text(f"checked: {bench.checked}"), (0, 0, 0, 2), expand=False)
    for table in (ways_table(report, bench), stages_table(bench), roofline_table(bench.kernels)):
        yield Text()
        yield Padding(table, (0, 0, 0, 2), expand=False)
    for line in peak_lines(report, bench):
        yield Text(f"  {line}")
    for line in start_lines(bench):
        yield Text(f"  {line}")


class Figures:
    """A table in which a figure is whole or absent: a terminal too narrow for all columns shows the first in rank.

    What is piped is never cut down.
    """

    def __init__(self, *headings: str, spare: Sequence[str] = ()) -> None:
        """`spare`: columns that can be left out, the least important one first."""
        self._headings = headings
        self._spare = spare
        self._rows: list[tuple[tuple[str, ...], str]] = []

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row, with a cell a heading."""
        self._rows.append((cells, style))

    def fitting(self, console: Console, width: int) -> tuple[Table, list[str]]:
        """Return the table with as many columns as fit, and those that it lacks."""
        missing: list[str] = []
        if not console.is_terminal:
            return self._table(missing), missing
        for heading in self._spare:
            if self._fits(console, width, missing):
                break
            missing.append(heading)
        for heading in missing[-2::-1]:  # a wide one among them may have made room for others
            if self._fits(console, width, [one for one in missing if one != heading]):
                missing.remove(heading)
        return self._table(missing), missing

    def _fits(self, console: Console, width: int, missing: Sequence[str]) -> bool:
        wanted = Measurement.get(console, console.options.update_width(WIDE), self._table(missing)).maximum
        return wanted <= width

    def _table(self, missing: Sequence[str]) -> Table:
        shown = [place for place, heading in enumerate(self._headings) if heading not in missing]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for place in shown:
            # On a terminal that is too narrow even so, cells break over lines: three dots would hide digits.
            table.add_column(self._headings[place], justify="right" if place else "left", overflow="fold")
        for cells, style in self._rows:
            table.add_row(*(cells[place] for place in shown), style=style)
        return table

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Ask for the room of the columns that are shown."""
        table, missing = self.fitting(console, options.max_width)
        parts: list[Table | Text] = [table, *_missing_line(missing)]
        found = [Measurement.get(console, options, part) for part in parts]
        return Measurement(max(one.minimum for one in found), max(one.maximum for one in found))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the columns that fit, and name the others."""
        table, missing = self.fitting(console, options.max_width)
        yield table
        yield from _missing_line(missing)


def _missing_line(missing: Sequence[str]) -> list[Text]:
    words = f"not shown for want of width: {', '.join(missing)}; --json FILE has all"
    return [Text(words, "dim")] if missing else []


def ways_table(report: BenchReport, bench: ConfigBench) -> Figures:
    """Return the ways to train, side by side."""
    table = Figures(
        "way", "cores", "tokens/s", "ms/update", "(least to most)", "GFLOP/s", "MFU", "efficiency",
        "peak MB", "base", "plan", "peak/(base+plan)",
        spare=(
            "base", "plan", "peak/(base+plan)", "(least to most)", "GFLOP/s", "cores", "peak MB", "efficiency", "MFU",
        ),
    )  # fmt: skip
    for one in bench.ways:
        middle = statistics.median(one.seconds)
        planned = one.base + one.plan
        table.add_row(
            _name(one), str(one.cores), f"{one.tokens_per_s:,.0f}", f"{1e3 * middle:,.1f}",
            f"{1e3 * min(one.seconds):,.1f} to {1e3 * max(one.seconds):,.1f}", f"{bench.gflop_per_s(one):,.0f}",
            f"{100 * report.mfu(bench, one):.0f} %", f"{100 * bench.efficiency(one):.0f} %",
            f"{one.peak / 1e6:,.0f}", f"{one.base / 1e6:,.0f}", f"{one.plan / 1e6:,.0f}",
            f"{one.peak / planned:.2f}" if planned else "-", style="bold" if one is bench.default else "",
        )  # fmt: skip
    return table


def stages_table(bench: ConfigBench) -> Figures:
    """Return the stages of the pipeline at the configuration's own delay."""
    one = bench.default
    seconds = statistics.median(one.seconds)
    table = Figures(
        f"stage ({_name(one)})", "busy ms/update", "share of cores", "GB/s a thread",
        spare=("GB/s a thread", "share of cores"),
    )  # fmt: skip
    for name, busy in one.busy.items():
        moved = bench.stream_bytes.get(name)
        rate = f"{moved / busy / 1e9:,.1f}" if moved and busy > 0 else ""
        table.add_row(name, f"{1e3 * busy:,.2f}", f"{100 * busy / seconds / one.cores:.1f} %", rate)
    idle = 1.0 - sum(one.busy.values()) / seconds / one.cores
    # Stages have more threads than there are cores: one that waits for a core in the middle of its work counts as busy.
    name = "(idle or between)" if idle >= 0 else "(of this waiting for a core)"
    table.add_row(name, f"{1e3 * abs(idle) * seconds * one.cores:,.2f}", f"{100 * abs(idle):.1f} %", "")
    return table


def roofline_table(kernels: Sequence[KernelTime]) -> Figures:
    """Return every kernel beside its floor."""
    table = Figures(
        "kernel (one core)", "calls", "µs/call", "(quartiles)", "MFLOP", "MB", "GFLOP/s", "of peak", "GB/s",
        "floor µs", "by", "× floor", "ms/update", "above floor ms",
        spare=("MFLOP", "MB", "(quartiles)", "GFLOP/s", "GB/s", "of peak", "calls", "by", "floor µs", "above floor ms"),
    )  # fmt: skip
    for one in kernels:
        low, high = one.spread
        table.add_row(
            f"{'  ' if one.part_of else ''}{one.name}", f"{one.calls:,}", f"{1e6 * one.seconds:,.1f}",
            f"{1e6 * low:,.1f} to {1e6 * high:,.1f}", f"{one.work.flops / 1e6:,.2f}", f"{one.work.bytes / 1e6:,.2f}",
            f"{one.gflop_per_s:,.0f}", f"{100 * one.of_peak:.0f} %", f"{one.gb_per_s:,.1f}",
            f"{1e6 * one.floor:,.1f}", one.bound, f"{one.above_floor:.2f}", f"{1e3 * one.per_update:,.2f}",
            f"{1e3 * one.lost:,.2f}", style="" if one.part_of else "bold",
        )  # fmt: skip
    wholes = [one for one in kernels if one.part_of is None]
    spent, lost = (1e3 * sum(getattr(one, name) for one in wholes) for name in ("per_update", "lost"))
    table.add_row("sum of the wholes", *[""] * 11, f"{spent:,.2f}", f"{lost:,.2f}")
    return table


def peak_lines(report: BenchReport, bench: ConfigBench) -> list[str]:
    """Return what MFU and floors are measured against."""
    precision, peak = bench.config.precision, report.peak(bench)
    widened = " (float16 is widened for it)" if precision is Precision.FP16 else ""
    rates = f"{peak.one:,.0f} GFLOP/s on one core, {peak.all:,.0f} on {report.peaks.cores}"
    said = [f"MFU: of the measured peak of the {peak.precision.value} product{widened}, {rates}"]
    if peak.precision is not Precision.FLOAT32:
        said.append("floors: products at that peak, all other arithmetic at float32's")
    return said


def start_lines(bench: ConfigBench) -> list[str]:
    """Return how long a fresh process takes to its first update."""
    said = []
    for name, start in (("warm", bench.warm), ("cold", bench.cold)):
        if start is not None:
            steps = ", ".join(f"{what} {seconds:.2f}" for what, seconds in start.reached.items())
            said.append(f"{name} start: first update after {start.seconds:.2f} s (reached: {steps})")
    return said


def _name(one: Measured) -> str:
    return f"{one.way} τ={one.delay}" if one.busy else one.way


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
