"""The measurements of `threadloom bench`: correctness first, then the machine, then each configuration.

All figures of a report, peaks of GEMM and memory included, come from one run of the command. The execution modes (one
thread, stage by stage on all cores, the pipeline at each delay) are processes that run in alternating rounds, so that
other load on the machine affects all of them. A round counts its updates in the steady state, without the filling and
draining of the pipeline, which are negligible in a real run.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from threadloom.kernels import GemmBackend, blas_info
from threadloom.pipeline import arena_size, available_cores
from threadloom.stages.config import Config, ConfigError, ModelArchitecture, Precision, ResolvedConfig
from threadloom.stages.console import module_output
from threadloom.stages.machine import alternate_rounds, detect, load_average, thread_limit
from threadloom.stages.memory import reduction_bytes
from threadloom.stages.models import parameter_count, parameter_shapes
from threadloom.stages.resolve import choose_precision_and_warn, resolve, stage_threads, to_json
from threadloom.stages.tools.bench.check import check_kernels, check_schedules, odd
from threadloom.stages.tools.bench.kernel_bench import update_bytes
from threadloom.stages.tools.bench.kernels import measure_kernels
from threadloom.stages.tools.bench.peaks import measure_peaks
from threadloom.stages.tools.bench.report import BenchReport, ConfigBench, ModeMeasurement, StartTimes
from threadloom.stages.tools.bench.roofline import Peaks, flops_per_token
from threadloom.stages.training import ExecutionMode, MeasuredStepWorker, compile_kernels, measured_config

ROUNDS = 5
STARTS = 3
DELAYS = (0, 1, 2)
LEAST_UPDATES = 2
"""Minimum number of updates per round."""

Progress = Callable[[str], None]
"""A function that is called with a short text at the start of each step."""


def run_bench(configs: Sequence[Config], seconds: float, cold: bool, on_progress: Progress) -> BenchReport:
    """Check, then measure the machine and each configuration, `seconds` for each execution mode.

    Raises ConfigError for an embedding of low rank: the kernels that are measured are those of a plain one.
    """
    for config in configs:
        _require_plain_kernels(config)
    load = load_average()
    machine, limit = detect(), thread_limit()
    on_progress(f"threads: {limit.count}, by {limit.reason}")
    for config in configs:
        choose_precision_and_warn(config)
    resolved = [_resolved(config) for config in configs]
    precisions = list(dict.fromkeys(config.precision for config in resolved))
    kinds = dict.fromkeys((config.precision, config.model.architecture) for config in resolved)
    checked = "; ".join(check_arithmetic(*kind, limit.count, on_progress) for kind in kinds)
    on_progress("measuring the machine")
    peaks = measure_peaks(machine, limit.count, precisions=precisions)
    found = [bench_config(config, seconds, cold, peaks, on_progress) for config in configs]
    return BenchReport(machine, _gemm_name(), load, checked, peaks, found)


def _require_plain_kernels(config: Config) -> None:
    if config.embedding.has_own_kernels:
        raise ConfigError(
            config.embedding.setting.partition("=")[0],
            expected="a plain embedding in a benchmark of the kernels",
            got=config.embedding.setting,
            cause="its output projection has kernels of its own, which this command neither checks nor measures",
            hint="leave the setting out; the log of `threadloom train` has the speed of a run with it",
        )


def check_arithmetic(precision: Precision, architecture: ModelArchitecture, cores: int, on_progress: Progress) -> str:
    """Check one precision on a small model of odd sizes, and return a summary. Raises BenchCheckFailed."""
    compile_kernels(on_progress, precision, architecture)
    name = precision.value if architecture is ModelArchitecture.GPT2 else f"{architecture.value} in {precision.value}"
    on_progress(f"{name}: checking that all execution modes give the same bits, and the kernels in float64")
    schedules = check_schedules(cores, precision, architecture)
    every = check_kernels(odd(cores, precision, architecture=architecture), every_tensor=True)
    return f"{name}: {schedules}; every gradient: {every}"


def _gemm_name() -> str:
    blas = blas_info(load=False)
    return "Numba's kernel" if blas.backend is GemmBackend.NUMBA else f"{blas.name} {blas.version}"


def _resolved(config: Config, delay: int | None = None) -> ResolvedConfig:
    """Return a configuration as `train` runs it here, but endless, and with `delay` if given."""
    return resolve(measured_config(config, delay), available_cores(), threads=stage_threads(config).count)


def bench_config(config: Config, seconds: float, cold: bool, peaks: Peaks, on_progress: Progress) -> ConfigBench:
    """Measure one configuration."""
    resolved = _resolved(config)
    geometry = resolved.geometry()
    on_progress(f"{config.name} in {resolved.precision.value}: checking one layer of its sizes in float64")
    checked = check_kernels(one_layer(resolved), every_tensor=False)
    modes = measure_modes(config, seconds, lambda text: on_progress(f"{config.name}: {text}"))
    on_progress(f"{config.name}: timing each kernel")
    kernel_times = measure_kernels(resolved, peaks, seconds)
    on_progress(f"{config.name}: timing the start")
    frozen = resolved.frozen_tensors()
    trained = parameter_shapes(geometry, frozen)
    streams = {
        "reduce": reduction_bytes(arena_size(trained), resolved.lanes),
        "update": update_bytes(
            geometry, trained.keys(), resolved.precision, forecasts=resolved.delay_correction.forecasts
        ),
    }
    return ConfigBench(
        config=resolved,
        flops_per_token=flops_per_token(geometry, frozen),
        parameters=parameter_count(geometry),
        checked=checked,
        ways=modes,
        kernels=kernel_times,
        stream_bytes=streams,
        warm=measure_start(resolved, STARTS, {}),
        cold=_cold_start(resolved, on_progress) if cold else None,
    )


def one_layer(config: ResolvedConfig) -> ResolvedConfig:
    """Return the configuration with one layer and one sequence, which float64 computes in seconds."""
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, layers=1), micro_batch=1)


def measure_modes(config: Config, seconds: float, on_progress: Progress) -> list[ModeMeasurement]:
    """Measure the execution modes in alternating rounds, `seconds` for each in total."""
    cores = stage_threads(config).count
    modes = [(ExecutionMode.REPLAY, 0), (ExecutionMode.STAGES, 0)]
    modes += [(ExecutionMode.PIPELINE, delay) for delay in dict.fromkeys((*DELAYS, config.delay))]
    configs = [_resolved(config, delay) for _, delay in modes]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(MeasuredStepWorker(to_json(resolved), mode, cores))
            for (mode, _), resolved in zip(modes, configs, strict=True)
        ]
        measured = alternate_rounds(
            workers, seconds, rounds=ROUNDS, least_updates=LEAST_UPDATES, warm_up=1, on_progress=on_progress
        )
        found = []
        for (mode, delay), resolved, worker, rounds in zip(modes, configs, workers, measured, strict=True):
            busy = {name: statistics.median(one.busy[name] / one.drawn for one in rounds) for name in rounds[0].busy}
            found.append(
                ModeMeasurement(
                    mode.value, delay, 1 if mode is ExecutionMode.REPLAY else cores,
                    resolved.sequences * resolved.model.context, [one.seconds / one.updates for one in rounds], busy,
                    **worker.memory(),
                )
            )  # fmt: skip
    return found


def measure_start(config: ResolvedConfig, starts: int, environment: dict[str, str]) -> StartTimes:
    """Start new processes and return the medians of the times at which they reached each point."""
    reached: list[dict[str, float]] = []
    for _ in range(starts):
        module, begin = "threadloom.stages.child_processes.measured_step", repr(time.monotonic())
        answer = module_output(module, begin, request=to_json(config).encode(), environment=environment)
        reached.append(json.loads(answer))
    return StartTimes(starts, {name: statistics.median(one[name] for one in reached) for name in reached[0]})


def _cold_start(config: ResolvedConfig, on_progress: Progress) -> StartTimes:
    on_progress(f"{config.name}: timing the start without compiled kernels, which takes up to a minute")
    with tempfile.TemporaryDirectory(prefix="threadloom-bench-") as folder:
        return measure_start(config, 1, {"NUMBA_CACHE_DIR": str(Path(folder))})
