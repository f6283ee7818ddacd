"""Throughput on 1, 2, 4, 8, 16 cores, compared with a prediction: `python -m benchmarks.scaling`.

One configuration runs on an increasing number of cores, each in a separate process that is pinned to them, in
alternating rounds. First 1 and 2 cores are measured; from them `benchmarks.scaling_model` predicts the others. The
prediction is printed, and then the others are measured, as far as the machine has the cores, together with 1 core
again.

With `--trajectory same`, micro-batch and lanes are those chosen for the largest number of cores, so that all numbers of
cores compute the same weights bit for bit. With `own`, each number of cores has its own, as a user would get; the
prediction then extrapolates from other settings.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from statistics import median

import click
import msgspec
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.protocol import Side, SideWorker
from benchmarks.results import FAINT, INK, format_spread
from benchmarks.scaling_model import Scaling, UpdateWork, fit
from benchmarks.throughput import machine_line, measure_sides, sizes_of, warn_if_busy
from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, InputError
from threadloom.stages.machine import stream_add, throughput
from threadloom.stages.memory import Bank, adamw_bytes, reduction_bytes
from threadloom.stages.resolve import load_config, resolve, to_json

COUNTS = (1, 2, 4, 8, 16)
BASE = (1, 2)
"""The numbers of cores that the prediction is based on."""
STREAM_BYTES, WINDOW, WINDOWS = 256 << 20, 0.05, 6
MEASURED, PREDICTED = "#2563eb", "#c3a46b"


class Trajectory(Enum):
    """The choice of micro-batch and lanes; the value is the command-line argument."""

    SAME = "same"  # those of the largest number of cores, for all
    OWN = "own"  # those of each number of cores


@dataclass(frozen=True)
class Point:
    """The measurements on one number of cores."""

    cores: int
    tokens_per_s: list[float]
    """One value per round."""
    base: list[float]
    """Tokens per second of one core in the same rounds."""

    @property
    def speedups(self) -> list[float]:
        """Speed relative to one core, round by round."""
        return [mine / one for mine, one in zip(self.tokens_per_s, self.base, strict=True)]

    @property
    def efficiency(self) -> float:
        """The median speed-up divided by the number of cores."""
        return median(self.speedups) / self.cores


def core_order(root: Path = Path("/")) -> list[int]:
    """Return the CPUs available to this process; those that share a physical core with an earlier one come last."""
    try:
        cpus = sorted(os.sched_getaffinity(0))
    except AttributeError as error:
        raise click.ClickException("pinning a process to cores requires Linux (sched_setaffinity)") from error
    seen: set[str] = set()
    first: list[int] = []
    later: list[int] = []
    for cpu in cpus:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings = topology.read_text().strip() if topology.exists() else str(cpu)
        (later if siblings in seen else first).append(cpu)
        seen.add(siblings)
    return [*first, *later]


def config_for(config: Config, cores: int, largest: int, trajectory: Trajectory) -> Config:
    """Return the configuration for `cores` cores, with a vocabulary; `benchmarks.ours` resolves its open settings."""
    model = msgspec.structs.replace(config.model, vocab_size=sizes_of(config, 1).model.vocabulary)
    config = msgspec.structs.replace(config, model=model)
    chosen = resolve(config, largest if trajectory is Trajectory.SAME else cores)
    return msgspec.structs.replace(config, micro_batch=chosen.micro_batch, lanes=chosen.lanes)


def workload_of(config: Config) -> UpdateWork:
    """Return the parts of an update of a configuration."""
    resolved = resolve(config, 1)
    lanes, count = resolved.lanes, resolved.micro_batches
    elements = Bank(resolved.geometry()).arena.flat.size
    writers = resolve(config, count).max_concurrent_backward  # more cores than micro-batches would be idle
    return UpdateWork(count, lanes, reduction_bytes(elements, lanes) + adamw_bytes(elements), writers)


def bandwidths() -> tuple[float, float]:
    """Return the memory bandwidth of one core and of two together, in bytes per second."""
    one, two = (
        throughput([stream_add(STREAM_BYTES // count) for _ in range(count)], WINDOW, WINDOWS) for count in (1, 2)
    )
    return one, max(one, two)


@dataclass(frozen=True)
class Sweep:
    """The configuration and the options of a sweep over numbers of cores."""

    config: Config
    largest: int
    trajectory: Trajectory
    delay: int
    seconds: float


def measure_points(sweep: Sweep, counts: Sequence[int], on_progress: Callable[[str], None]) -> list[Point]:
    """Measure each number of cores in `counts`, the first of which is 1, in alternating rounds."""
    order = core_order()
    with ExitStack() as stack:
        workers = []
        for cores in counts:
            chosen = config_for(sweep.config, cores, sweep.largest, sweep.trajectory)
            text, sizes = to_json(chosen), sizes_of(chosen, cores)
            workers.append(stack.enter_context(SideWorker(Side.OURS, text, sizes, sweep.delay, cpus=order[:cores])))
        found = measure_sides(workers, sizes, sweep.seconds, on_progress)
    return [
        Point(cores, side.tokens_per_s, found[0].tokens_per_s) for cores, side in zip(counts, found, strict=True)
    ]  # fmt: skip


def predict(
    workload: UpdateWork, tokens: int, points: Sequence[Point], bandwidth: tuple[float, float]
) -> list[Scaling]:
    """Return the model fitted to the medians of 1 and 2 cores, then to each round, which shows the uncertainty."""
    one, two = points[0], points[1]
    rates = [(median(one.tokens_per_s), median(two.tokens_per_s))]
    rates += list(zip(one.tokens_per_s, two.tokens_per_s, strict=True))
    return [fit(workload, {1: tokens / a, 2: tokens / b}, *bandwidth) for a, b in rates]


def efficiency_text(models: Sequence[Scaling], cores: int) -> str:
    """Return the predicted efficiency, with the minimum and maximum over the fits to single rounds."""
    shares = [model.efficiency(cores) for model in models[1:]]
    return f"{models[0].efficiency(cores):.0%} ({min(shares):.0%} to {max(shares):.0%})"


def scaling_table(points: Sequence[Point], models: Sequence[Scaling], tokens: int, counts: Sequence[int]) -> Table:
    """Return the table of measured and predicted figures, one row per number of cores."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("cores", "tokens/s", "speed-up", "efficiency", "predicted tokens/s", "predicted efficiency"):
        drawn.add_column(heading, justify="right")
    by_cores = {point.cores: point for point in points}
    for cores in counts:
        point = by_cores.get(cores)
        measured = ["not measured"] * 3
        if point:
            measured = [f"{median(point.tokens_per_s):,.0f}", format_spread(point.speedups), f"{point.efficiency:.0%}"]
        drawn.add_row(
            str(cores), *measured, f"{tokens / models[0].seconds(cores):,.0f}", efficiency_text(models, cores)
        )
    return drawn


def scaling_figure(
    name: str, points: Sequence[Point], models: Sequence[Scaling], counts: Sequence[int], machine: str
) -> Figure:
    """Return the plot of speed-up and efficiency over the number of cores, measured and predicted."""
    drawn = Figure(figsize=(9.0, 4.4), dpi=130, facecolor="white", layout="constrained")
    speed, share = drawn.subplots(1, 2)
    predicted = [[model.speedup(cores) for cores in counts] for model in models]
    low, high = ([choose(column) for column in zip(*predicted, strict=True)] for choose in (min, max))
    measured = [point.cores for point in points]
    middle = [median(point.speedups) for point in points]
    for axes, divide in ((speed, False), (share, True)):

        def scaled(values: Sequence[float], at: Sequence[int], divide: bool = divide) -> list[float]:
            return [value / cores if divide else value for value, cores in zip(values, at, strict=True)]

        axes.plot(counts, scaled(list(map(float, counts)), counts), color=INK, linewidth=0.9, linestyle=(0, (4, 3)),
                  label="ideal")  # fmt: skip
        axes.fill_between(counts, scaled(low, counts), scaled(high, counts), color=PREDICTED, alpha=0.25, linewidth=0)
        axes.plot(counts, scaled(predicted[0], counts), color=PREDICTED, label="predicted from 1 and 2 cores")
        axes.plot(measured, scaled(middle, measured), color=MEASURED, marker="o", label="measured")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(cores) for cores in counts])
        axes.set_xlabel("cores", color=INK)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.tick_params(colors=INK, length=0, labelsize=9)
    speed.set_yscale("log", base=2)
    speed.set_yticks(counts, [str(cores) for cores in counts])
    speed.set_ylabel("speed-up", color=INK)
    share.set_ylabel("parallel efficiency", color=INK)
    share.set_ylim(0.0, 1.1)
    speed.legend(frameon=False, fontsize=9, labelcolor=INK)
    speed.set_title(f"{name} on more cores", loc="left", color=INK, fontsize=12, fontweight="bold")
    share.set_xlabel(f"cores\n{machine}", color=INK, fontsize=7)
    return drawn


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "name", default="large", show_default=True, metavar="NAME_OR_FILE")
@click.option("--cores", "wanted", default=",".join(map(str, COUNTS)), show_default=True,
              help="Numbers of cores; those that the machine lacks are only predicted.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0.0), default=20.0, show_default=True,
              help="Seconds per number of cores, over all rounds.")  # fmt: skip
@click.option("--trajectory", type=click.Choice([kind.value for kind in Trajectory]), default="same", show_default=True,
              help="Micro-batch and lanes of the largest number of cores for all, or of each.")  # fmt: skip
@click.option("--delay", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/scaling"), show_default=True)
def main(name: str, wanted: str, seconds: float, trajectory: str, delay: int, out: Path) -> None:
    """Measure throughput on an increasing number of cores, and compare it with a prediction from one and two."""
    try:
        counts = sorted({*BASE, *(int(count) for count in wanted.split(","))})
        config = load_config(name)
    except (ValueError, InputError) as error:
        raise click.ClickException(str(error)) from error
    here = available_cores()
    if counts[0] < 1 or here < BASE[-1]:
        raise click.ClickException(
            f"the smallest number of cores is 1, and at least 2 cores are needed; this machine has {here}"
        )
    console = Console(width=None if sys.stdout.isatty() else 150)

    def on_progress(text: str) -> None:
        console.print(f"{config.name}: {text}", style="dim", highlight=False)

    warn_if_busy(lambda text: console.print(f"warning: {text}", style="yellow", highlight=False))
    sweep = Sweep(config, counts[-1], Trajectory(trajectory), delay, seconds)
    workload = workload_of(config_for(config, 2, sweep.largest, sweep.trajectory))
    tokens = sizes_of(config, 1).tokens
    on_progress("measuring the bandwidth of memory")
    bandwidth = bandwidths()
    points = measure_points(sweep, BASE, on_progress)
    models = predict(workload, tokens, points, bandwidth)
    model = models[0]
    console.print(
        f"an update has {workload.micro_batches} micro-batches in {workload.lanes} lanes: {model.serial * 1e3:.1f} ms "
        f"serial, {model.micro * 1e3:.1f} ms per micro-batch, {model.memory * 1e3:.1f} ms of memory at "
        f"{bandwidth[0] / 1e9:.0f} GB/s (two cores {bandwidth[1] / 1e9:.0f}, κ = {model.saturation:.2f})",
        highlight=False,
    )
    for cores in counts[2:]:
        console.print(f"predicted for {cores} cores: efficiency {efficiency_text(models, cores)}", highlight=False)
    more = [cores for cores in counts[2:] if cores <= here]
    if more:
        points += measure_points(sweep, [1, *more], on_progress)[1:]
    console.print(scaling_table(points, models, tokens, counts))
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine_line(), "config": config.name, "trajectory": trajectory, "delay": delay, "tokens": tokens,
        "load_average": os.getloadavg(), "bandwidth": bandwidth, "model": asdict(model),
        "measured": [{**asdict(point), "speedups": point.speedups, "efficiency": point.efficiency} for point in points],
        "predicted": [
            {"cores": cores, "seconds": model.seconds(cores), "efficiency": [m.efficiency(cores) for m in models]}
            for cores in counts
        ],
    }  # fmt: skip
    (out / "scaling.json").write_text(json.dumps(content, indent=2) + "\n")
    scaling_figure(config.name, points, models, counts, machine_line()).savefig(out / "scaling.png")
    console.print(f"written to {out}: scaling.json, scaling.png", highlight=False)


if __name__ == "__main__":
    main()
