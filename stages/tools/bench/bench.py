"""`threadloom bench`: is it right, how fast is it, how far from what the machine could do, and where does the time go?

Every figure belongs to this run: the peaks of the products and the bandwidths are measured beside it. The ways to train
(one thread, stage by stage on all cores, the pipeline at each delay) are processes that take turns, so that whatever
else the machine does meets all of them. A round counts its updates in the steady state, without the filling and the
draining of the pipeline; so many of them follow each other in a real run that these vanish.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from threadloom.kernels import GemmBackend, blas_info
from threadloom.pipeline import available_cores
from threadloom.stages.config import Config, Precision, ResolvedConfig, ScheduleConfig, ScheduleKind
from threadloom.stages.console import module_command
from threadloom.stages.machine import Machine, detect, load_average
from threadloom.stages.memory import Bank
from threadloom.stages.models import parameter_count
from threadloom.stages.resolve import choose_and_warn, numerics, resolve, to_json
from threadloom.stages.tools.bench.check import check_kernels, check_schedules, odd
from threadloom.stages.tools.bench.kernels import kernel_bench, reduce_bytes, time_case, update_bytes
from threadloom.stages.tools.bench.peaks import measure_peaks
from threadloom.stages.tools.bench.roofline import KernelTime, Peaks, ProductPeak, flops_per_token
from threadloom.stages.tools.tune import RANDOM_VOCABULARY
from threadloom.stages.training import ENDLESS, ExecutionMode, MeasuredStepWorker, compile_kernels

ROUNDS = 5
STARTS = 3
DELAYS = (0, 1, 2)
LEAST_UPDATES = 2
"""Of one round."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One way of training."""

    way: str
    delay: int
    cores: int
    tokens: int  # of an update
    seconds: list[float]
    """Of an update, a figure a round."""
    busy: dict[str, float] = field(default_factory=dict)
    """Seconds inside each stage in an update, over its threads; the median of the rounds."""
    peak: int = 0  # bytes, of the process
    base: int = 0  # bytes, of the process before training was built: Python, libraries, compiled kernels
    plan: int = 0  # bytes, the sum of the memory plan

    @property
    def tokens_per_s(self) -> float:
        """The median over rounds."""
        return self.tokens / statistics.median(self.seconds)


@dataclass(frozen=True)
class Start:
    """Seconds from the start of a fresh process to each point on the way to the first update: medians of starts."""

    starts: int
    reached: dict[str, float]

    @property
    def seconds(self) -> float:
        """To the first update."""
        return self.reached["first update"]


@dataclass(frozen=True)
class ConfigBench:
    """All about one configuration."""

    config: ResolvedConfig  # resolved, at its own delay
    flops_per_token: float
    parameters: int
    checked: str
    ways: list[Measured]
    kernels: list[KernelTime]
    stream_bytes: dict[str, float]
    """What the streaming passes must move in an update."""
    warm: Start
    cold: Start | None

    def way(self, way: ExecutionMode, delay: int | None = None) -> Measured:
        """Return what was measured of one way, at a delay."""
        wanted = self.config.delay if delay is None else delay
        return next(one for one in self.ways if one.way == way.value and one.delay == wanted)

    @property
    def default(self) -> Measured:
        """The pipeline at the configuration's own delay."""
        return self.way(ExecutionMode.PIPELINE)

    def gflop_per_s(self, measured: Measured) -> float:
        """Achieved, by the formula of `flops_per_token`."""
        return measured.tokens_per_s * self.flops_per_token / 1e9

    def efficiency(self, measured: Measured) -> float:
        """The speed-up over the replay in one thread, as a share of the cores."""
        return measured.tokens_per_s / self.way(ExecutionMode.REPLAY, 0).tokens_per_s / measured.cores


@dataclass(frozen=True)
class BenchReport:
    """A whole bench."""

    machine: Machine
    product: str
    load: float | None
    """Threads of all programs that were at work before, on average of a minute; above 0.5 the figures are doubtful."""
    checked: str
    peaks: Peaks
    configs: list[ConfigBench]

    def peak(self, bench: ConfigBench) -> ProductPeak:
        """The measured peak of what the configuration's precision multiplies with."""
        return self.peaks.product(bench.config.precision)

    def mfu(self, bench: ConfigBench, measured: Measured) -> float:
        """The share of that peak, of the cores in use, that the updates achieve."""
        peak = self.peak(bench).one if measured.cores == 1 else self.peak(bench).all
        return bench.gflop_per_s(measured) / peak if peak > 0 else 0.0


def run_bench(configs: Sequence[Config], seconds: float, cold: bool, say: Say) -> BenchReport:
    """Check, then measure the machine and each configuration, `seconds` for each way of training."""
    load = load_average()
    cores, machine = available_cores(), detect()
    for config in configs:
        choose_and_warn(config)
    precisions = list(dict.fromkeys(as_measured(config, cores).precision for config in configs))
    checked = "; ".join(check(precision, cores, say) for precision in precisions)
    say("measuring the machine")
    peaks = measure_peaks(machine, precisions=precisions)
    found = [bench_config(config, cores, seconds, cold, peaks, say) for config in configs]
    return BenchReport(machine, _product(), load, checked, peaks, found)


def check(precision: Precision, cores: int, say: Say) -> str:
    """Check one precision on a small model of odd sizes, and say what was found."""
    compile_kernels(say, precision)
    say(f"{precision.value}: checking that all ways to train end in the same bits, and the kernels against float64")
    schedules, every = check_schedules(cores, precision), check_kernels(odd(cores, precision), every_tensor=True)
    return f"{precision.value}: {schedules}; every gradient: {every}"


def _product() -> str:
    blas = blas_info(load=False)
    return "Numba's product" if blas.backend is GemmBackend.NUMBA else f"{blas.name} {blas.version}"


def as_measured(config: Config, cores: int, delay: int | None = None) -> ResolvedConfig:
    """Return the configuration resolved as it is measured: without end, at a constant rate, at one delay."""
    model = msgspec.structs.replace(config.model, vocab_size=config.model.vocab_size or RANDOM_VOCABULARY)
    changed = msgspec.structs.replace(
        config, model=model, steps=ENDLESS, schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT),
        delay=config.delay if delay is None else delay,
    )  # fmt: skip
    return resolve(changed, cores)


def bench_config(config: Config, cores: int, seconds: float, cold: bool, peaks: Peaks, say: Say) -> ConfigBench:
    """Measure one configuration."""
    resolved = as_measured(config, cores)
    geometry = resolved.model.geometry()
    say(f"{config.name} in {resolved.precision.value}: checking one layer of its sizes against float64")
    checked = check_kernels(one_layer(resolved), every_tensor=False)
    ways = measure_ways(config, cores, seconds, lambda words: say(f"{config.name}: {words}"))
    say(f"{config.name}: kernels one by one")
    kernel_times = measure_kernels(resolved, peaks, seconds)
    say(f"{config.name}: start")
    elements = Bank(geometry).arena.flat.size
    streams = {
        "reduce": reduce_bytes(elements, resolved.lanes),
        "update": update_bytes(geometry, elements, resolved.precision),
    }
    return ConfigBench(
        config=resolved,
        flops_per_token=flops_per_token(geometry),
        parameters=parameter_count(geometry),
        checked=checked,
        ways=ways,
        kernels=kernel_times,
        stream_bytes=streams,
        warm=measure_start(resolved, STARTS, {}),
        cold=_cold_start(resolved, say) if cold else None,
    )


def one_layer(config: ResolvedConfig) -> ResolvedConfig:
    """Return the configuration with one layer and one sequence: what float64 can follow in seconds."""
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, layers=1), micro_batch=1)


def measure_kernels(config: ResolvedConfig, peaks: Peaks, seconds: float) -> list[KernelTime]:
    """Time every kernel of a resolved configuration, all of them in about so many seconds."""
    with numerics(config):
        cases = kernel_bench(config).cases()
        return [time_case(case, peaks, seconds / len(cases), config.precision) for case in cases]


def measure_ways(config: Config, cores: int, seconds: float, say: Say) -> list[Measured]:
    """Let the ways train in turns, `seconds` each in all, the order turned round every other time."""
    wanted = [(ExecutionMode.REPLAY, 0), (ExecutionMode.STAGES, 0)]
    wanted += [(ExecutionMode.PIPELINE, delay) for delay in dict.fromkeys((*DELAYS, config.delay))]
    with ExitStack() as stack:
        workers: list[tuple[ExecutionMode, int, ResolvedConfig, MeasuredStepWorker]] = []
        for way, delay in wanted:
            resolved = as_measured(config, cores, delay)
            workers.append(
                (way, delay, resolved, stack.enter_context(MeasuredStepWorker(to_json(resolved), way, cores)))
            )
        pace = {}
        for *_, worker in workers:
            say(f"warming up: {worker.way.value}")
            worker.run(1)
            rates = worker.run(LEAST_UPDATES)
            pace[worker] = rates.seconds / rates.updates
        taken: dict[MeasuredStepWorker, list[float]] = {worker: [] for *_, worker in workers}
        busy: dict[MeasuredStepWorker, list[dict[str, float]]] = {worker: [] for *_, worker in workers}
        for number in range(ROUNDS):
            say(f"round {number + 1} of {ROUNDS}")
            for *_, worker in workers if number % 2 == 0 else reversed(workers):
                rates = worker.run(max(LEAST_UPDATES, round(seconds / ROUNDS / pace[worker])))
                pace[worker] = rates.seconds / rates.updates
                taken[worker].append(pace[worker])
                busy[worker].append({name: spent / rates.drawn for name, spent in rates.busy.items()})
        found = []
        for way, delay, resolved, worker in workers:
            stages = {name: statistics.median(one[name] for one in busy[worker]) for name in busy[worker][0]}
            found.append(
                Measured(
                    way.value, delay, 1 if way is ExecutionMode.REPLAY else cores,
                    resolved.sequences * resolved.model.context, taken[worker], stages, **worker.memory(),
                )
            )  # fmt: skip
    return found


def measure_start(config: ResolvedConfig, starts: int, environment: dict[str, str]) -> Start:
    """Start fresh processes, and take the medians of when they reached what."""
    reached: list[dict[str, float]] = []
    for _ in range(starts):
        command = module_command("threadloom.stages.training.measured_step", repr(time.monotonic()))
        answer = subprocess.run(
            command, input=to_json(config), env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
        )
        reached.append(json.loads(answer.stdout))
    return Start(starts, {name: statistics.median(one[name] for one in reached) for name in reached[0]})


def _cold_start(config: ResolvedConfig, say: Say) -> Start:
    say(f"{config.name}: start without compiled kernels, which takes up to a minute")
    with tempfile.TemporaryDirectory(prefix="threadloom-bench-") as folder:
        return measure_start(config, 1, {"NUMBA_CACHE_DIR": folder})


def to_dict(report: BenchReport) -> dict[str, Any]:
    """Return the report as JSON takes it, derived figures included."""
    found: dict[str, Any] = msgspec.to_builtins(asdict(report), enc_hook=str)
    for bench, out in zip(report.configs, found["configs"], strict=True):
        out["config"] = json.loads(to_json(bench.config))
        out["precision"] = bench.config.precision.value
        out["mfu_peak"] = msgspec.to_builtins(report.peak(bench))
        for measured, way in zip(bench.ways, out["ways"], strict=True):
            way["tokens_per_s"] = measured.tokens_per_s
            way["gflop_per_s"] = bench.gflop_per_s(measured)
            way["mfu"] = report.mfu(bench, measured)
            way["efficiency"] = bench.efficiency(measured)
        for kernel, row in zip(bench.kernels, out["kernels"], strict=True):
            row |= {"gflop_per_s": kernel.gflop_per_s, "gb_per_s": kernel.gb_per_s, "above_floor": kernel.above_floor,
                    "of_peak": kernel.of_peak}  # fmt: skip
    return found


def write_json(report: BenchReport, path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(to_dict(report)), indent=2) + b"\n")
