"""The printed report of `threadloom bench`."""

import statistics
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from threadloom.pipeline import format_bytes
from threadloom.stages.config import Precision, printable
from threadloom.stages.machine import BUSY
from threadloom.stages.tools.bench.report import BenchReport, ConfigBench, ModeMeasurement
from threadloom.stages.tools.bench.roofline import GemmPeak, KernelTime

WIDE = 10_000
"""A console width at which every table fits."""


class BenchView:
    """The report as a rich renderable: coloured on a terminal, plain text elsewhere."""

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
            yield Text(f"  load average before: {report.load:.1f}; other programs are running, measure again", "yellow")
        for bench in report.configs:
            yield from _config(report, bench)


def machine_lines(report: BenchReport) -> list[Text]:
    """Return the peaks of the machine, one line each."""
    peaks, machine = report.peaks, report.machine
    levels = ", ".join(f"{format_bytes(level.bytes)}: {level.gb_per_s:,.0f}" for level in peaks.levels)
    return [
        Text(f"{machine.cpu}, {machine.logical_cores} cores; GEMM by {report.product}"),
        *(Text(_gemm_line(peak, peaks.cores)) for peak in (peaks.gemm(Precision.FLOAT32), *peaks.others)),
        Text(f"memory {peaks.stream_one:,.1f} GB/s on one core, {peaks.stream_all:,.1f} on {peaks.cores}"),
        Text(f"GB/s of one core by size of the working set: {levels}"),
    ]


def _gemm_line(peak: GemmPeak, cores: int) -> str:
    return f"{peak.precision.value} GEMM {peak.one:,.0f} GFLOP/s on one core, {peak.all:,.0f} on {cores}"


def _config(report: BenchReport, bench: ConfigBench) -> Iterator[RenderableType]:
    config, model = bench.config, bench.config.model
    yield Text(
        f"\n{printable(config.name)} in {config.precision.value}: {bench.parameters:,} parameters, "
        f"V {model.vocab_size} T {model.context} d {model.channels} "
        f"L {model.layers}, {config.sequences} sequences in micro-batches of {config.micro_batch}, "
        f"{bench.flops_per_token / 1e6:,.2f} MFLOP per token",
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


class FittedTable:
    """A table that drops its least important columns on a narrow terminal, so that no figure is truncated.

    Output that is not to a terminal has all columns.
    """

    def __init__(self, *headings: str, spare: Sequence[str] = ()) -> None:
        """`spare` are the columns that can be dropped, the least important first."""
        self._headings = headings
        self._spare = spare
        self._rows: list[tuple[tuple[str, ...], str]] = []

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row with one cell per heading."""
        self._rows.append((cells, style))

    def fitting(self, console: Console, width: int) -> tuple[Table, list[str]]:
        """Return the table with the columns that fit, and the headings of the dropped ones."""
        missing: list[str] = []
        if not console.is_terminal:
            return self._table(missing), missing
        for heading in self._spare:
            if self._fits(console, width, missing):
                break
            missing.append(heading)
        for heading in missing[-2::-1]:  # dropping a wide column may have left space for narrow ones
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
            # On a still narrower terminal cells wrap over lines, because an ellipsis would hide digits.
            table.add_column(self._headings[place], justify="right" if place else "left", overflow="fold")
        for cells, style in self._rows:
            table.add_row(*(cells[place] for place in shown), style=style)
        return table

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width of the columns that are shown."""
        table, missing = self.fitting(console, options.max_width)
        parts: list[Table | Text] = [table, *_missing_line(missing)]
        found = [Measurement.get(console, options, part) for part in parts]
        return Measurement(max(one.minimum for one in found), max(one.maximum for one in found))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the columns that fit, and name the dropped ones."""
        table, missing = self.fitting(console, options.max_width)
        yield table
        yield from _missing_line(missing)


def _missing_line(missing: Sequence[str]) -> list[Text]:
    text = f"columns hidden (terminal too narrow): {', '.join(missing)}; --json FILE has all"
    return [Text(text, "dim")] if missing else []


def ways_table(report: BenchReport, bench: ConfigBench) -> FittedTable:
    """Return the table of execution modes."""
    table = FittedTable(
        "mode", "cores", "tokens/s", "ms/update", "(min to max)", "GFLOP/s", "MFU", "efficiency",
        "peak MB", "base", "plan", "peak/(base+plan)",
        spare=(
            "base", "plan", "peak/(base+plan)", "(min to max)", "GFLOP/s", "cores", "peak MB", "efficiency", "MFU",
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


def stages_table(bench: ConfigBench) -> FittedTable:
    """Return the table of stages of the pipeline at the configuration's own delay."""
    one = bench.default
    seconds = statistics.median(one.seconds)
    table = FittedTable(
        f"stage ({_name(one)})", "busy ms/update", "share of cores", "GB/s per thread",
        spare=("GB/s per thread", "share of cores"),
    )  # fmt: skip
    for name, busy in one.busy.items():
        moved = bench.stream_bytes.get(name)
        rate = f"{moved / busy / 1e9:,.1f}" if moved and busy > 0 else ""
        table.add_row(name, f"{1e3 * busy:,.2f}", f"{100 * busy / seconds / one.cores:.1f} %", rate)
    idle = 1.0 - sum(one.busy.values()) / seconds / one.cores
    # There are more stage threads than cores; one that waits for a core in the middle of a call counts as busy.
    name = "(idle or between calls)" if idle >= 0 else "(of this, waiting for a core)"
    table.add_row(name, f"{1e3 * abs(idle) * seconds * one.cores:,.2f}", f"{100 * abs(idle):.1f} %", "")
    return table


def roofline_table(kernels: Sequence[KernelTime]) -> FittedTable:
    """Return the table of kernels with their roofline bounds."""
    table = FittedTable(
        "kernel (one core)", "calls", "µs/call", "(quartiles)", "MFLOP", "MB", "GFLOP/s", "of peak", "GB/s",
        "bound µs", "bound by", "× bound", "ms/update", "above bound ms",
        spare=(
            "MFLOP", "MB", "(quartiles)", "GFLOP/s", "GB/s", "of peak", "calls", "bound by", "bound µs",
            "above bound ms",
        ),
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
    table.add_row("sum without parts", *[""] * 11, f"{spent:,.2f}", f"{lost:,.2f}")
    return table


def peak_lines(report: BenchReport, bench: ConfigBench) -> list[str]:
    """Return the peaks to which MFU and roofline bounds refer."""
    precision, peak = bench.config.precision, report.peak(bench)
    upcast = " (float16 is upcast for it)" if precision is Precision.FP16 else ""
    rates = f"{peak.one:,.0f} GFLOP/s on one core, {peak.all:,.0f} on {report.peaks.cores}"
    said = [f"MFU: relative to the measured peak of {peak.precision.value} GEMM{upcast}, {rates}"]
    if peak.precision is not Precision.FLOAT32:
        said.append("bounds: GEMM at that peak, all other arithmetic at that of float32 GEMM")
    return said


def start_lines(bench: ConfigBench) -> list[str]:
    """Return the times from the start of a process to its first update."""
    said = []
    for name, start in (("warm", bench.warm), ("cold", bench.cold)):
        if start is not None:
            steps = ", ".join(f"{point} {seconds:.2f}" for point, seconds in start.reached.items())
            said.append(f"{name} start: first update after {start.seconds:.2f} s (reached: {steps})")
    return said


def _name(one: ModeMeasurement) -> str:
    return f"{one.way} τ={one.delay}" if one.busy else one.way
