"""Command of `make field`: see `tests.field`."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.field.case import Case, Outcome
from tests.field.cases_files import MODELS, OUTPUT, TEXT_IN
from tests.field.cases_places import LIMITS, PLACES
from tests.field.cases_signals import SIGNALS
from tests.field.machine import Namespaces, install

CASES = (*PLACES, *LIMITS, *TEXT_IN, *OUTPUT, *MODELS, *SIGNALS)


def result_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of the cases: expected, found, seconds."""
    table = Table("section", "case", "expected", "got", "s")
    for outcome in outcomes:
        case = outcome.case
        expected = " or ".join(map(str, case.status)) + "".join(
            f", {pattern}" for pattern in (*case.says, *case.leaves)
        )
        got = "skipped" if outcome.status is None and not outcome.problems else f"{outcome.status}"
        text = f"[red]{got}: {'; '.join(outcome.problems)}" if outcome.problems else got
        table.add_row(str(case.section), case.name, expected[:60], text, f"{outcome.seconds:.0f}")
    return table


def run_cases(
    cases: Sequence[Case], jobs: int, folder: Path, namespaces: Namespaces, console: Console
) -> list[Outcome]:
    """Install the wheel in `folder`, and run the cases there, `jobs` at a time."""
    lacking = namespaces.problem()
    if lacking:
        console.print(f"no namespaces ({lacking}): the cases that need them are skipped")
    here = install(folder, namespaces)

    def run(case: Case) -> Outcome:
        if lacking and (case.setup or case.user is not None):
            return Outcome(case, (), None, 0.0, "")
        outcome = here.run(case)
        if outcome.problems:
            console.print(f"failed: {case.name}: {'; '.join(outcome.problems)}", markup=False, highlight=False)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, cases))


@click.command()
@click.argument("patterns", nargs=-1)
@click.option("--jobs", default=2, show_default=True, help="Cases that run at a time.")
@click.option("--rootless", is_flag=True, default=os.geteuid() != 0,
              help="Mount file systems in user namespaces, as for users other than root.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the folder with the outputs of the cases.")
def main(patterns: tuple[str, ...], jobs: int, rootless: bool, keep: bool) -> None:
    """Run the cases whose names contain one of PATTERNS, by default all."""
    cases = [case for case in CASES if not patterns or any(pattern in case.name for pattern in patterns)]
    folder, begin = Path(tempfile.mkdtemp(prefix="field-")), time.monotonic()
    console = Console(width=170)
    try:
        outcomes = run_cases(cases, jobs, folder, Namespaces(rootless), console)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(result_table(outcomes), highlight=False)
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    tracebacks = sum("a traceback" in outcome.problems for outcome in outcomes)
    console.print(
        f"{len(outcomes)} cases, {failed} failed, {tracebacks} tracebacks, {time.monotonic() - begin:.0f} s"
        + (f"; outputs in {folder}/cases" if keep else "")
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    # The cases send SIGINT, and a job in the background is started with SIGINT ignored, which its children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
