"""Command of `make targets`: see `tests.targets`."""

import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

import click
import llvmlite.binding
from rich.console import Console

from tests.targets import worker
from tests.targets.processors import PROCESSORS, Processor
from tests.targets.table import kernel_table, summary_table
from tests.targets.worker import CHECKS, Report, compile_only, environment, prepare, run_here
from threadloom.pipeline import format_clock


def host_features() -> dict[str, bool]:
    """Return the features of this machine, by LLVM's names."""
    try:
        return dict(llvmlite.binding.get_host_cpu_features())
    except RuntimeError:
        return {}


def in_process(processor: Processor, cache: Path, function: Any, *arguments: Any) -> Report:
    """Return the result of `function` from a new process that compiles for a processor; a crash is a failed test."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare, initargs=(processor,)) as pool:
        with _environment_lock, _environment(environment(processor, cache)):
            future = pool.submit(function, processor, *arguments)  # starts the process
        try:
            report: Report = future.result()
        except BrokenProcessPool:
            return Report(failed=["the process was killed: the compiler aborted, or an instruction is missing here"])
        return report


_environment_lock = Lock()


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Change variables of the environment within the ``with`` block."""
    earlier = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(earlier)


def examine(
    processors: Sequence[Processor], checks: Sequence[str], cache: Path, done: Callable[[Processor, Report], None]
) -> dict[Processor, Report]:
    """Return the report on each processor, two at a time; call `done` as each is finished.

    Those that cannot run here are compiled for the argument types with which the tests called kernels on the others.
    """

    def examined(processor: Processor, function: Any, argument: object) -> Report:
        report = in_process(processor, cache, function, argument)
        done(processor, report)
        return report

    features = host_features()
    here = [one for one in processors if one.runs_on(platform.machine(), features)]
    rest = [one for one in processors if one not in here]
    with ThreadPoolExecutor(2) as threads:
        reports = dict(zip(here, threads.map(lambda one: examined(one, run_here, checks), here), strict=True))
        types = max((report.signatures for report in reports.values()), key=len, default=[])
        compiled = threads.map(lambda one: examined(one, compile_only, types), rest)
        reports |= dict(zip(rest, compiled, strict=True))
    return {processor: reports[processor] for processor in processors}


def never_compiled(reports: Iterable[Report]) -> list[str]:
    """Return the kernels that are compiled for none of the processors."""
    compiled, unused = set[str](), set[str]()
    for report in reports:
        compiled.update(report.compiled)
        unused.update(report.unused)
    return sorted(unused - compiled)


@click.command()
@click.option("--only", multiple=True, help="Title of a processor; may be repeated. Default: all.")
@click.option("--cache", type=click.Path(path_type=Path), default=worker.ROOT / "build" / "targets", show_default=True)
@click.argument("checks", nargs=-1)
def main(only: tuple[str, ...], cache: Path, checks: tuple[str, ...]) -> None:
    """Compile every kernel for every processor, and run the kernel tests on those that this machine can run.

    CHECKS are test files below the repository; default: all tests of kernels.
    """
    chosen = [processor for processor in PROCESSORS if not only or processor.title in only]
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"this machine: {llvmlite.binding.get_host_cpu_name()} ({platform.machine()})", highlight=False)
    began = monotonic()

    def done(processor: Processor, report: Report) -> None:
        console.print(kernel_table(processor, report))
        console.print(f"{processor.title}: finished after {format_clock(monotonic() - began)}", highlight=False)

    reports = examine(chosen, checks or CHECKS, cache.absolute(), done)
    console.print(summary_table(reports))
    never = [] if checks else never_compiled(reports.values())
    if never:
        console.print(f"compiled for no processor: {', '.join(never)}", style="red", highlight=False)
    for processor, report in reports.items():
        for line in report.failed:
            console.print(f"{processor.title}: {line}", style="red", highlight=False)
        if report.output:
            console.print(report.output[-4000:], highlight=False, markup=False)
    sys.exit(1 if never or any(report.failed for report in reports.values()) else 0)


if __name__ == "__main__":
    main()
