"""Tables of what was compiled and run."""

from collections.abc import Mapping
from statistics import median

from rich.table import Table

from tests.targets.processors import Processor
from tests.targets.worker import KernelReport, Report

SUMMARY = "error: median over kernels of the largest relative L2 distance from float64"


def kernel_table(processor: Processor, report: Report) -> Table:
    """Return one row per kernel that tests call, or that compiled code calls through an entry."""
    table = Table(title=f"{processor.title}: LLVM's {processor.cpu}", title_justify="left")
    table.add_column("kernel")
    for column in ("calls", "error", "of its bound", "vector bits"):
        table.add_column(column, justify="right")
    for name, kernel in sorted(report.kernels.items()):
        calls = str(kernel.calls) if kernel.calls else "compiled"
        error = "" if kernel.error is None else f"{kernel.error:.1e}"
        share = "" if kernel.of_bound is None else f"{kernel.of_bound:.0%}"
        table.add_row(name, calls, error, share, width(kernel))
    return table


def width(kernel: KernelReport) -> str:
    """Return the width of a kernel's vectors in bits, with a mark for AMX tiles."""
    return f"{kernel.bits or '-'}{' + tiles' if kernel.tiles else ''}"


def summary_table(reports: Mapping[Processor, Report]) -> Table:
    """Return one row per processor."""
    table = Table(
        title="error: median over kernels of the largest relative L2 distance from float64", title_justify="left"
    )
    table.add_column("processor")
    for column in ("compiled", "ran", "error", "of its bound", "vector bits", "bfloat16", "tests", "failed", "seconds"):
        table.add_column(column, justify="right")
    for processor, report in reports.items():
        kernels = report.kernels.values()
        ran = sum(kernel.calls > 0 for kernel in kernels)
        errors = [kernel.error for kernel in kernels if kernel.error is not None]
        shares = [kernel.of_bound for kernel in kernels if kernel.of_bound is not None]
        table.add_row(
            processor.title, str(len(report.compiled)), str(ran) if ran else "not here",
            f"{median(errors):.0e}" if errors else "", f"{max(shares):.0%}" if shares else "",
            str(max((kernel.bits for kernel in kernels), default=0)), " ".join(report.dot_paths),
            str(report.passed) if report.passed else "", str(len(report.failed)), f"{report.seconds:.0f}",
        )  # fmt: skip
    return table
