"""The report of `threadloom bench`: measurements of each configuration, and the figures derived from them."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from threadloom.stages.config import ResolvedConfig
from threadloom.stages.machine import Machine
from threadloom.stages.resolve import to_json
from threadloom.stages.tools.bench.roofline import GemmPeak, KernelTime, Peaks
from threadloom.stages.training import ExecutionMode


@dataclass(frozen=True)
class ModeMeasurement:
    """One execution mode at one delay."""

    way: str
    delay: int
    cores: int
    tokens: int  # per update
    seconds: list[float]
    """Seconds per update, one value per round."""
    busy: dict[str, float] = field(default_factory=dict)
    """Seconds per update inside each stage, summed over its threads; the median of the rounds."""
    peak: int = 0  # bytes of the process, at most
    base: int = 0  # bytes of the process before training was built: Python, libraries, compiled kernels
    plan: int = 0  # bytes, the sum of the memory plan

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, the median of the rounds."""
        return self.tokens / statistics.median(self.seconds)


@dataclass(frozen=True)
class StartTimes:
    """Seconds from the start of a new process to each point on the way to the first update, medians over starts."""

    starts: int
    reached: dict[str, float]

    @property
    def seconds(self) -> float:
        """Seconds to the first update."""
        return self.reached["first update"]


@dataclass(frozen=True)
class ConfigBench:
    """The measurements of one configuration."""

    config: ResolvedConfig  # at its own delay
    flops_per_token: float
    parameters: int
    checked: str
    ways: list[ModeMeasurement]
    kernels: list[KernelTime]
    stream_bytes: dict[str, float]
    """Stage → bytes that its streaming pass must move per update."""
    warm: StartTimes
    cold: StartTimes | None

    def way(self, mode: ExecutionMode, delay: int | None = None) -> ModeMeasurement:
        """Return the measurement of an execution mode at a delay, by default the configuration's own."""
        wanted = self.config.delay if delay is None else delay
        return next(one for one in self.ways if one.way == mode.value and one.delay == wanted)

    @property
    def default(self) -> ModeMeasurement:
        """The pipeline at the configuration's own delay."""
        return self.way(ExecutionMode.PIPELINE)

    def gflop_per_s(self, measured: ModeMeasurement) -> float:
        """Return the achieved arithmetic rate, with operations counted as in `flops_per_token`."""
        return measured.tokens_per_s * self.flops_per_token / 1e9

    def efficiency(self, measured: ModeMeasurement) -> float:
        """Return the speed-up over the replay in one thread, divided by the number of cores."""
        return measured.tokens_per_s / self.way(ExecutionMode.REPLAY, 0).tokens_per_s / measured.cores


@dataclass(frozen=True)
class BenchReport:
    """A complete report."""

    machine: Machine
    product: str
    load: float | None
    """Load average before the measurement; above `machine.BUSY` the figures are unreliable."""
    checked: str
    peaks: Peaks
    configs: list[ConfigBench]

    def peak(self, bench: ConfigBench) -> GemmPeak:
        """Return the measured peak of the GEMM that the configuration's precision uses."""
        return self.peaks.gemm(bench.config.precision)

    def mfu(self, bench: ConfigBench, measured: ModeMeasurement) -> float:
        """Return the model FLOPs utilisation: the achieved share of that peak on the cores in use."""
        peak = self.peak(bench).one if measured.cores == 1 else self.peak(bench).all
        return bench.gflop_per_s(measured) / peak if peak > 0 else 0.0


def bench_dict(report: BenchReport) -> dict[str, Any]:
    """Return the report for `--json`, derived figures included."""
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
    path.write_bytes(msgspec.json.format(msgspec.json.encode(bench_dict(report)), indent=2) + b"\n")
