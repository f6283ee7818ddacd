"""Dataflow engines side by side: threadloom, SPDL, pypeln, streamable, joblib, concurrent.futures and DataLoader.

    pip install 'threadloom[engines]'                 # the peers; `pip install 'threadloom[bench]'` adds PyTorch
    python -m benchmarks.engines                      # prints tables; --out FOLDER also writes engines.md and .json
    python -m benchmarks.engines --rounds 9 --scale 2

Each workload is first run through every engine with the answers compared to those of a plain loop. Then the engines run
alternately, for several rounds, in one process. Two things are measured:

- throughput: items per second of a full feed, and the time to the first result, which contains the start of threads and
  processes. The start of processes takes seconds and is left out of the throughput;
- added latency: the median time from the hand-over of an item to its arrival at the caller, less the median time of the
  functions alone, with a feed so slow that every engine becomes idle between two items.

Medians of the rounds are reported; ratios are medians of the ratios within rounds. An engine that is not installed, and
a workload that an engine has no idiom for, are named.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from benchmarks.engine_peers import ENGINES, Engine
from benchmarks.engine_work import MEGABYTES_10, EnginePart, EngineWorkload, Feed, workloads
from threadloom.pipeline import format_duration
from threadloom.stages.machine import detect

LATENCY_ITEMS = 40
"""Items per round of the latency; the first fifth warms up."""
CHECKED_ITEMS = 12


class WrongAnswer(RuntimeError):
    """An engine returned other results than a plain loop."""


@dataclass
class Measurement:
    """The measurements of one engine on one workload: one value per round."""

    engine: str
    items_per_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    """Seconds from the start of the engine to its first result."""
    latency_s: list[float] = field(default_factory=list)
    """Added latency per item in seconds."""

    def ratio(self, base: "Measurement") -> float:
        """Return the median ratio of the throughput to that of `base`, round by round."""
        return statistics.median(mine / other for mine, other in zip(self.items_per_s, base.items_per_s, strict=True))


@dataclass
class EngineComparison:
    """The measurements of one workload."""

    workload: str
    function_s: float
    """Median duration of the functions of an item, called in a plain loop, in seconds."""
    sides: list[Measurement]
    without: list[str]
    """Installed engines that have no idiom for the workload."""


def check_answers(engine: Engine, workload: EngineWorkload) -> bool:
    """Compare a few results with those of a plain loop; return False if the engine has no idiom for the workload."""
    results = engine.run(workload, Feed(CHECKED_ITEMS))
    if results is None:
        return False
    found = sorted(workload.summary(result) for result in results)
    if found != workload.results(CHECKED_ITEMS):
        raise WrongAnswer(
            f"{engine.name} returned other results than a plain loop on {workload.name!r}: expected "
            f"{workload.results(CHECKED_ITEMS)[:3]}..., got {found[:3]}..."
        )
    return True


def measure_throughput(engine: Engine, workload: EngineWorkload) -> tuple[float, float]:
    """Return the items per second, without the time to the first result for processes, and that time in seconds."""
    begin = time.perf_counter()
    arrived: list[float] = []
    for _ in engine.run(workload, Feed(workload.items)) or ():
        arrived.append(time.perf_counter())  # noqa: PERF401 - the loop is measured
    if len(arrived) != workload.items:
        raise WrongAnswer(f"{engine.name} returned {len(arrived)} of {workload.items} results on {workload.name!r}")
    if workload.part is EnginePart.PROCESSES:
        return (len(arrived) - 1) / (arrived[-1] - arrived[0]), arrived[0] - begin
    # An engine may compute further results while the caller waits for the first one, so that its time counts.
    return len(arrived) / (arrived[-1] - begin), arrived[0] - begin


def measure_latency(engine: Engine, workload: EngineWorkload, items: int, function_s: float) -> float:
    """Return the median time from the hand-over of an item to its arrival, less `function_s`, in seconds."""
    feed = Feed(items, workload.interval)
    waits: list[float] = []
    for result in engine.run(workload, feed) or ():
        now = time.perf_counter()
        waits.append(now - feed.sent[int(workload.summary(result)[0])])
    return statistics.median(waits[items // 5 :]) - function_s


def function_seconds(workload: EngineWorkload, calls: int = 20) -> float:
    """Return the median duration of the functions of one item in the calling thread; the longer one of a join."""
    medians = []
    for function in workload.functions:
        times = []
        for number in range(calls):
            begin = time.perf_counter()
            function(number)
            times.append(time.perf_counter() - begin)
        medians.append(statistics.median(times))
    return max(medians)


def compare_engines(
    workload: EngineWorkload,
    engines: Sequence[Engine],
    rounds: int,
    latency_items: int,
    on_progress: Callable[[str], None],
) -> EngineComparison:
    """Check the answers of all engines, then measure them in alternating rounds."""
    on_progress("checking that all engines give the same answers")
    able = [engine for engine in engines if check_answers(engine, workload)]
    function_s = function_seconds(workload)
    sides = {engine.name: Measurement(engine.name) for engine in able}
    for number in range(rounds):
        on_progress(f"round {number + 1} of {rounds}")
        for engine in able[:: -1 if number % 2 else 1]:  # so that no engine always runs after the same one
            side = sides[engine.name]
            rate, first = measure_throughput(engine, workload)
            side.items_per_s.append(rate)
            side.first_s.append(first)
            side.latency_s.append(measure_latency(engine, workload, latency_items, function_s))
    without = [engine.name for engine in engines if engine.name not in sides]
    return EngineComparison(workload.name, function_s, list(sides.values()), without)


def engines_markdown(comparisons: Sequence[EngineComparison], versions: dict[str, str], left_out: Sequence[str]) -> str:
    """Return the results as Markdown tables."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += [
            f"### {comparison.workload}",
            "",
            "| engine | items/s | relative to threadloom | added latency | to the first result |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for side in comparison.sides:
            rate, latency = statistics.median(side.items_per_s), statistics.median(side.latency_s)
            shown = format_duration(latency) if latency > 0 else "0"
            first = format_duration(statistics.median(side.first_s))
            ratio = side.ratio(comparison.sides[0])
            lines.append(f"| {side.engine} | {rate:,.0f} | {ratio:.2f} | {shown} | {first} |")
        if comparison.without:
            lines += ["", f"No idiom for it: {', '.join(comparison.without)}."]
        lines += ["", f"The functions of an item take {format_duration(comparison.function_s)}.", ""]
    lines.append(f"{', '.join([machine_text(), *(f'{name} {number}' for name, number in versions.items())])}.")
    if left_out:
        lines.append(f"Left out: {'; '.join(left_out)}.")
    return "\n".join(lines) + "\n"


def machine_text() -> str:
    """Return the processor, the cores and the Python version."""
    machine = detect()
    return f"{machine.cpu}, {machine.logical_cores} cores, Python {platform.python_version()}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Alternating rounds.")
@click.option("--scale", type=click.FloatRange(min=0.0, min_open=True), default=1.0, show_default=True,
              help="Factor of the number of items per round.")  # fmt: skip
@click.option("--workload", "only", multiple=True, metavar="NAME", help="Repeatable; all by default.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Measure other engines too.")
@click.option("--elements", type=click.IntRange(min=1), default=MEGABYTES_10, show_default=True,
              help="Elements of the float64 arrays.")  # fmt: skip
@click.option("--latency-items", type=click.IntRange(min=5), default=LATENCY_ITEMS, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for engines.md and engines.json.")
def main(
    *, rounds: int, scale: float, only: tuple[str, ...], peers: bool, elements: int, latency_items: int,
    as_json: bool, out: Path | None,
) -> None:  # fmt: skip
    """Measure dataflow engines side by side, after checking that all give the same answers."""
    chosen = [each for each in workloads(scale, elements) if not only or each.name in only]
    if not chosen:
        names = ", ".join(repr(each.name) for each in workloads(scale, elements))
        raise click.ClickException(f"no workload is called {only[0]!r}: the workloads are {names}")
    candidates = [each for each in ENGINES if peers or each.name.startswith("threadloom")]
    versions = {each.name: number for each in candidates if (number := each.version())}
    problems = {each.name: problem for each in candidates if (problem := each.problem())}
    engines = [each for each in candidates if each.name not in problems]
    for problem in problems.values():
        click.echo(f"left out: {problem}", err=True)
    comparisons = []
    for workload in chosen:
        on_progress = _printer(workload.name)
        comparisons.append(compare_engines(workload, engines, rounds, latency_items, on_progress))
    text = engines_markdown(comparisons, versions, list(problems.values()))
    found = {
        "machine": machine_text(), "versions": versions, "left_out": list(problems.values()), "rounds": rounds,
        "comparisons": [asdict(each) for each in comparisons],
    }  # fmt: skip
    document = json.dumps(found, indent=1) + "\n"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "engines.md").write_text(text, encoding="utf-8")
        (out / "engines.json").write_text(document, encoding="utf-8")
    click.echo(document if as_json else text, nl=False)


def _printer(name: str) -> Callable[[str], None]:
    return lambda text: click.echo(f"{name}: {text}", err=True)


if __name__ == "__main__":
    sys.exit(main())
