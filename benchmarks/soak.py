"""Soak test: thousands of random graphs under random faults, checked against every invariant of `pipeline.testing`.

    python -m benchmarks.soak --seconds 60 --seed 0     # --json FILE also writes the results as JSON
    python -m benchmarks.soak --graphs 10000            # ends after as many seeds, however long they take
    python -m benchmarks.soak --only 1234               # repeats one seed, with all details

Seeds are tried in ascending order from --seed, so a longer run includes all seeds of a shorter one. Every seventh graph
has no faults and must deliver all items. A failing seed is printed with the command that repeats it, and the exit
status is 1.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

from threadloom.pipeline.testing import FaultPlan, FaultReport, exercise, random_subject

PLAIN = 7
"""Every PLAIN-th graph has no faults."""


@dataclass
class SoakFigures:
    """The results of a soak test."""

    first_seed: int
    graphs: int = 0
    stages: int = 0
    items: int = 0  # processed by stages and sinks
    faults: Counter[str] = field(default_factory=Counter)  # faults that occurred, by kind
    outcomes: Counter[str] = field(default_factory=Counter)  # outcomes of the runs
    slowest: float = 0.0  # duration of the longest run in seconds
    failures: list[int] = field(default_factory=list)  # failed seeds
    seconds: float = 0.0
    python: str = sys.version.split()[0]
    gil: bool = True

    def add(self, report: FaultReport, seed: int) -> None:
        """Add the report of one seed."""
        self.graphs += 1
        self.stages += len(report.statistics.stages)
        self.items += sum(stage.items_in for stage in report.statistics.stages)
        self.faults.update(fired.fault.kind.value for fired in report.fired)
        self.outcomes["success" if report.error is None else type(report.error).__name__] += 1
        self.slowest = max(self.slowest, report.seconds)
        if report.broken:
            self.failures.append(seed)

    def __str__(self) -> str:
        faults = ", ".join(f"{kind} {number}" for kind, number in sorted(self.faults.items())) or "none"
        outcomes = ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common())
        return (
            f"graphs {self.graphs} ({self.stages} stages), items {self.items:,}, failures {len(self.failures)}, "
            f"seconds {self.seconds:.1f}\n"
            f"faults that occurred: {self.faults.total()} ({faults})\n"
            f"outcomes: {outcomes}; the slowest run took {self.slowest:.2f} s\n"
            f"CPython {self.python}{'' if self.gil else ', free-threaded'}, seeds from {self.first_seed}"
        )


def try_seed(seed: int) -> FaultReport:
    """Run the graph of one seed under the faults of that seed."""
    subject = random_subject(seed)
    plan = FaultPlan() if seed % PLAIN == 0 else FaultPlan.random(subject.graph, seed)
    return exercise(subject, plan)


def soak(
    seeds: Iterable[int], first_seed: int, seconds: float = float("inf"), report_failure: Callable[[str], None] = print
) -> SoakFigures:
    """Try seeds until they are exhausted or `seconds` have passed."""
    figures = SoakFigures(first_seed, gil=getattr(sys, "_is_gil_enabled", lambda: True)())
    began = time.monotonic()
    for seed in seeds:
        report = try_seed(seed)
        figures.add(report, seed)
        if report.broken:
            report_failure(
                f"seed {seed} FAILED: {report.broken[0]}\n  repeat with: python -m benchmarks.soak --only {seed}"
            )
        figures.seconds = time.monotonic() - began
        if figures.seconds > seconds:
            break
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="duration in seconds (60, or no limit with --graphs)")
    parser.add_argument("--graphs", type=int, help="number of seeds; no limit")
    parser.add_argument("--seed", type=int, default=0, help="first seed (0)")
    parser.add_argument("--only", type=int, help="try only this seed, and print all details")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    logging.getLogger("threadloom.pipeline").setLevel(logging.ERROR)  # faults are skipped in many of the runs
    if arguments.only is not None:
        for stage in random_subject(arguments.only).graph.stages:
            print(stage)
        report = try_seed(arguments.only)
        print(report.plan, report.statistics, f"ended with {report.error!r}", *report.broken, sep="\n")
        return bool(report.broken)
    first, graphs = arguments.seed, arguments.graphs
    seeds = count(first) if graphs is None else range(first, first + graphs)
    limit = 60.0 if graphs is None else float("inf")
    figures = soak(seeds, first, limit if arguments.seconds is None else arguments.seconds)
    print(figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(figures), indent=1) + "\n", encoding="utf-8")
    return bool(figures.failures)


if __name__ == "__main__":
    sys.exit(main())
