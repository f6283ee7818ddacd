"""The printed report of `threadloom doctor`."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from threadloom.pipeline import format_bytes
from threadloom.stages.machine import Machine
from threadloom.stages.speeds import VariantSpeeds
from threadloom.stages.tools.doctor.examination import ConfigDefaults, DoctorReport, blas_name
from threadloom.stages.tools.doctor.measuring import GEMM_SIZE, MachineRates
from threadloom.stages.tools.doctor.precision import CAPTION, paths_table

VARIANTS_CAPTION = (
    "GFLOP/s of one core, measured once for each set of shapes (rows; inputs x outputs of the layers); * is used. "
    "All give the same bits."
)


class DoctorView:
    """The report as a rich renderable: coloured on a terminal, plain text elsewhere."""

    def __init__(self, report: DoctorReport) -> None:
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
        yield paths_table(report.products, report.cores, report.precisions, report.speeds)
        if report.variants:
            yield Text("\nVariants of Numba's float32 GEMM", "bold")
            yield Padding(Text(VARIANTS_CAPTION, "dim"), (0, 0, 0, 2))
        for shapes, variants in report.variants.items():
            yield Padding(Text(shapes), (0, 0, 0, 2))
            yield _variants_table(variants)
        yield Text("\nChoices", "bold")
        yield from (_sentence(sentence, "-", "") for sentence in report.choices)
        yield Text()
        yield _defaults_table(report.defaults)
        if report.warnings:
            yield Text("\nWarnings", "bold yellow")
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
        ("caches", ", ".join(f"{name} {format_bytes(size)}" for name, size in caches)),
        ("memory", f"{format_bytes(machine.memory_total)}, {format_bytes(machine.memory_available)} available"),
    ]


def _software_rows(report: DoctorReport) -> list[tuple[str, str]]:
    libraries = ", ".join(f"{name} {number}" for name, number in report.libraries.items())
    rows = [("Python", report.python), ("libraries", libraries)]
    rows.append(("BLAS for the kernels", f"{blas_name(report.blas)}, {report.blas.architecture or 'unknown kernels'}"))
    rows.extend(
        (
            "BLAS loaded",
            f"{blas.library} {blas.version}, {blas.architecture}, threads: {blas.threads} ({_owner(blas.path)})",
        )
        for blas in report.loaded
    )
    return rows


def _measured_table(measured: MachineRates) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("one core", justify="right")
    table.add_column(f"all {measured.cores}", justify="right")
    table.add_column("ratio", justify="right")
    for name, one, every, unit in (
        (f"float32 GEMM, {GEMM_SIZE} × {GEMM_SIZE}", measured.gemm_one, measured.gemm_all, "GFLOP/s"),
        ("memory copy", measured.copy_one, measured.copy_all, "GB/s"),
        ("memory add", measured.add_one, measured.add_all, "GB/s"),
    ):
        ratio = f"{every / one:.2f}" if one > 0 else "-"
        table.add_row(name, f"{one:,.1f} {unit}", f"{every:,.1f} {unit}", ratio)
    return Padding(table, (0, 0, 0, 2))


def _variants_table(variants: VariantSpeeds) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("product")
    for variant in next(iter(variants.rates.values()), {}):
        table.add_column(variant, justify="right", overflow="fold")
    for kind, rates in variants.rates.items():
        cells = (f"{rate:,.0f}{'*' if variants.chosen.get(kind) == name else ''}" for name, rate in rates.items())
        table.add_row(kind, *cells)
    return Padding(table, (0, 0, 0, 2))


def _defaults_table(defaults: Sequence[ConfigDefaults]) -> Padding:
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
    """Return the package that a library belongs to: the wheels of NumPy and SciPy keep theirs in {numpy,scipy}.libs."""
    for package, name in (("numpy", "NumPy's"), ("scipy", "SciPy's")):
        if f"{package}.libs" in path or f"/{package}/" in path:
            return name
    return path
