"""The tables of `threadloom bench`, from a report and nothing else."""

import statistics
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stages.bench import BenchReport, ConfigBench, Measured
from stages.bench_roofline import KernelTime, ProductPeak
from stages.settings import Precision

BUSY = 0.5
"""Load average from which figures are doubtful."""


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


def _table(*headings: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < left else "right", no_wrap=place < left)
    return table


def ways_table(report: BenchReport, bench: ConfigBench) -> Table:
    """Return the ways to train, side by side."""
    table = _table(
        "way", "cores", "tokens/s", "ms/update", "(least to most)", "GFLOP/s", "MFU", "efficiency",
        "peak MB", "base", "plan", "peak/(base+plan)",
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


def stages_table(bench: ConfigBench) -> Table:
    """Return the stages of the pipeline at the configuration's own delay."""
    one = bench.default
    seconds = statistics.median(one.seconds)
    table = _table(f"stage ({_name(one)})", "busy ms/update", "share of cores", "GB/s a thread")
    for name, busy in one.busy.items():
        moved = bench.stream_bytes.get(name)
        rate = f"{moved / busy / 1e9:,.1f}" if moved and busy > 0 else ""
        table.add_row(name, f"{1e3 * busy:,.2f}", f"{100 * busy / seconds / one.cores:.1f} %", rate)
    idle = 1.0 - sum(one.busy.values()) / seconds / one.cores
    table.add_row("(idle or between)", f"{1e3 * idle * seconds * one.cores:,.2f}", f"{100 * idle:.1f} %", "")
    return table


def roofline_table(kernels: Sequence[KernelTime]) -> Table:
    """Return every kernel beside its floor."""
    table = _table(
        "kernel (one core)", "calls", "µs/call", "(quartiles)", "MFLOP", "MB", "GFLOP/s", "of peak", "GB/s",
        "floor µs", "by", "× floor", "ms/update", "above floor ms",
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
