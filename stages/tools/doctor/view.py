"""The doctor's report as a person reads it."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from threadloom.stages.machine import GEMM_SIZE, Machine, Measured
from threadloom.stages.tools.doctor.doctor import Defaults, Report, blas_name, size_text
from threadloom.stages.tools.doctor.precision import CAPTION, paths_table


class ReportView:
    """The report as a person reads it; coloured on a terminal, plain text elsewhere."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the sections."""
        report = self._report
        yield Text("Machine", "bold")
        yield _pairs(_machine_rows(report.machine))
        yield Text("\nSoftware", "bold")
        yield _pairs(_software_rows(report))
        if report.measured is not None:
            yield Text("\nMeasured", "bold")
            yield _measured_table(report.measured)
        yield Text("\nPrecisions", "bold")
        yield Padding(Text(CAPTION, "dim"), (0, 0, 0, 2))
        yield paths_table(report.products, report.machine.logical_cores, report.precisions, report.speeds)
        yield Text("\nWhat will be used", "bold")
        yield from (_sentence(sentence, "-", "") for sentence in report.choices)
        yield Text()
        yield _defaults_table(report.defaults)
        if report.warnings:
            yield Text("\nWorth a look", "bold yellow")
            yield from (_sentence(sentence, "!", "yellow") for sentence in report.warnings)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    cores = str(machine.logical_cores)
    if machine.physical_cores not in (None, machine.logical_cores):
        cores += f" hardware threads on {machine.physical_cores} cores"
    caches = (("L1d", machine.l1d), ("L2", machine.l2), ("L3", machine.l3))
    return [
        ("CPU", f"{machine.cpu} ({machine.microarchitecture}, {machine.architecture}), {machine.system}"),
        ("cores for this process", cores),
        ("features", " ".join(machine.features) or "unknown"),
        ("caches", ", ".join(f"{name} {size_text(size)}" for name, size in caches)),
        ("memory", f"{size_text(machine.memory_total)}, {size_text(machine.memory_available)} available"),
    ]


def _software_rows(report: Report) -> list[tuple[str, str]]:
    libraries = ", ".join(f"{name} {number}" for name, number in report.libraries.items())
    rows = [("Python", report.python), ("libraries", libraries)]
    rows.append(("BLAS of the kernels", f"{blas_name(report.blas)}, {report.blas.architecture or 'unknown kernels'}"))
    rows.extend(
        (
            "BLAS loaded",
            f"{blas.library} {blas.version}, {blas.architecture}, {blas.threads} threads a call ({_owner(blas.path)})",
        )
        for blas in report.loaded
    )
    return rows


def _measured_table(measured: Measured) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("one core", justify="right")
    table.add_column(f"all {measured.cores}", justify="right")
    table.add_column("ratio", justify="right")
    for name, one, every, unit in (
        (f"float32 product, {GEMM_SIZE} × {GEMM_SIZE}", measured.gemm_one, measured.gemm_all, "GFLOP/s"),
        ("memory copy", measured.copy_one, measured.copy_all, "GB/s"),
        ("memory add", measured.add_one, measured.add_all, "GB/s"),
    ):
        ratio = f"{every / one:.2f}" if one > 0 else "-"
        table.add_row(name, f"{one:,.1f} {unit}", f"{every:,.1f} {unit}", ratio)
    return Padding(table, (0, 0, 0, 2))


def _defaults_table(defaults: Sequence[Defaults]) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("config")
    for heading in ("micro-batch", "rows", "lanes", "forward", "backward", "reduce", "update"):
        table.add_column(heading, justify="right")
    for row in defaults:
        numbers = (row.micro_batch, row.rows, row.lanes, row.forward, row.backward, row.reduce, row.update)
        table.add_row(row.config, *map(str, numbers))
    return Padding(table, (0, 0, 0, 2))


def _pairs(rows: Sequence[tuple[str, str]]) -> Padding:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return Padding(table, (0, 0, 0, 2))


def _sentence(sentence: str, mark: str, style: str) -> Padding:
    table = Table.grid(padding=(0, 1))
    table.add_row(Text(mark, style), Text(sentence))
    return Padding(table, (0, 0, 0, 2))


def _owner(path: str) -> str:
    """Which package brought a library: NumPy's and SciPy's wheels keep theirs in numpy.libs and scipy.libs."""
    for package, name in (("numpy", "NumPy's"), ("scipy", "SciPy's")):
        if f"{package}.libs" in path or f"/{package}/" in path:
            return name
    return path
