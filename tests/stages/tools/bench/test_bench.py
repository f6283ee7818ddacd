"""`threadloom bench`: its checks find errors, its tables have the measured figures, and the command completes."""

import dataclasses
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.stages.support import assert_same, build, command, result, run_sequence, tiny
from tests.stages.tools.doctor.test_doctor import MACHINE
from threadloom.kernels import Weights
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config.settings import Precision
from threadloom.stages.data.batches import RandomTokens
from threadloom.stages.machine import Work, detect
from threadloom.stages.memory import adamw_bytes, reduction_bytes
from threadloom.stages.memory.bank import Bank
from threadloom.stages.memory.graph_items import MicroBatch, MicroGradient
from threadloom.stages.memory.precision_memory import MicroBatchSlot
from threadloom.stages.models import Geometry
from threadloom.stages.resolve.loading import apply_overrides, load_config, to_json
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.step.compute import Compute
from threadloom.stages.tools.bench import check as bench_check, peaks as bench_peaks
from threadloom.stages.tools.bench.check import ODD, BenchCheckFailed, check_kernels, check_schedules, odd
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, HEAD
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.kernels import kernel_bench
from threadloom.stages.tools.bench.measurements import one_layer
from threadloom.stages.tools.bench.report import BenchReport, ConfigBench, ModeMeasurement, StartTimes, bench_dict
from threadloom.stages.tools.bench.roofline import (
    BandwidthLevel,
    GemmPeak,
    KernelTime,
    KernelWork,
    Peaks,
    roofline_bound_of_steps,
)
from threadloom.stages.tools.bench.tables import BenchView, start_lines
from threadloom.stages.training import sequential as bench_sequential
from threadloom.stages.training.measured_step import ExecutionMode
from threadloom.stages.training.sequential import stage_by_stage
from threadloom.stages.training.short_run import measured_config
from threadloom.stages.training.warmup import compile_kernels

PEAKS = Peaks(2, 200.0, 400.0, 20.0, 30.0, (BandwidthLevel(1 << 20, 90.0), BandwidthLevel(1 << 27, 20.0)))


def made_up() -> BenchReport:
    """Return a report: 100 tokens per update, 1,000 per second in one thread, 1,500 by stage, 1,800 in the pipeline."""
    config = resolve(ODD, 2)
    ways = [
        ModeMeasurement(ExecutionMode.REPLAY.value, 0, 1, 100, [0.1, 0.09, 0.12], {}, 300, 100, 190),
        ModeMeasurement(ExecutionMode.STAGES.value, 0, 2, 100, [1 / 15], {}, 300, 100, 190),
        ModeMeasurement(
            ExecutionMode.PIPELINE.value, 0, 2, 100, [1 / 18], {"forward": 0.04, "reduce": 0.001}, 300, 100, 190
        ),
    ]
    kernels = [
        KernelTime("head", 6, KernelWork(4e9, 2e6), 0.04, (0.03, 0.05), 0.02, "compute", arithmetic=0.02),
        KernelTime("logits", 6, KernelWork(2e9, 2e6), 0.03, (0.03, 0.05), 0.01, "compute", "head"),
    ]
    start = StartTimes(3, {"interpreter": 0.1, "first update": 1.25})
    bench = ConfigBench(config, 1e8, 1234, "all", ways, kernels, {"reduce": 5e6}, start, None)
    return BenchReport(MACHINE, "Numba's kernel", 3.0, "everything", PEAKS, [bench])


def test_the_derived_figures() -> None:
    report = made_up()
    bench = report.configs[0]
    replay, pipeline = bench.way(ExecutionMode.REPLAY), bench.default
    assert replay.tokens_per_s == pytest.approx(1000), "the median"
    assert bench.efficiency(pipeline) == pytest.approx(0.9)
    assert bench.gflop_per_s(pipeline) == pytest.approx(180)
    assert report.mfu(bench, pipeline) == pytest.approx(0.45), "relative to the peak of both cores"
    assert report.mfu(bench, replay) == pytest.approx(0.5), "relative to the peak of one core"


def test_the_tables_have_the_figures_and_no_control_characters() -> None:
    console = Console(file=io.StringIO(), width=180, color_system=None)
    with console.capture() as capture:
        console.print(BenchView(made_up()), highlight=False)
    text = capture.get()
    assert "\x1b" not in text
    rows = [line.split() for line in text.splitlines()]
    for wanted in (
        "one thread 1 1,000 100.0",
        "1,500",
        "pipeline τ=0 2 1,800 55.6",
        "forward 40.00 36.0 %",
        "reduce 1.00 0.9 % 5.0",
    ):
        assert any(wanted in " ".join(row) for row in rows), wanted
    kernel = next(row for row in rows if row[:2] == ["head", "6"])
    assert kernel[kernel.index("%") - 1] == "50", "of peak"
    assert "MFU: relative to the measured peak of float32 GEMM, 200 GFLOP/s on one core, 400 on 2" in text
    assert kernel[-5:] == ["20,000.0", "compute", "2.00", "240.00", "120.00"]
    assert "sum without parts 240.00 120.00" in [" ".join(row) for row in rows], "parts are not counted again"
    assert "load average before: 3.0" in text


def shown(report: BenchReport, width: int, terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=terminal)
    with console.capture() as capture:
        console.print(BenchView(report), highlight=False)
    return capture.get()


def large() -> BenchReport:
    """The made-up report with figures as long as those of a large model."""
    report = made_up()
    bench = report.configs[0]
    kernels = [
        dataclasses.replace(one, calls=1536, seconds=0.2345678, spread=(0.2123456, 0.2654321), floor=0.1987654)
        for one in bench.kernels
    ]
    ways = [dataclasses.replace(one, seconds=[12.3456, 13.4567, 14.5678], peak=2_345_678_901) for one in bench.ways]
    return dataclasses.replace(report, configs=[dataclasses.replace(bench, kernels=kernels, ways=ways)])


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
@pytest.mark.parametrize("report", [made_up(), large()], ids=["small", "large"])
def test_no_figure_loses_digits_on_a_narrow_terminal(report: BenchReport, width: int) -> None:
    text = shown(report, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        whole = set(shown(report, 300).split())
        rows = [line for line in text.splitlines() if line.startswith(("  head", "  pipeline", "  forward"))]
        assert len(rows) == 3
        assert whole.issuperset(" ".join(rows).split())
        (kernel,) = [row for row in rows if row.startswith("  head")]
        assert len(kernel.split()) >= 5, "the time of a kernel and its bound"


def test_a_narrow_terminal_hides_columns_and_names_them() -> None:
    assert "columns hidden" not in shown(large(), 200)
    narrow, wider = (shown(large(), width) for width in (100, 150))
    assert "columns hidden (terminal too narrow): MFLOP, MB, (quartiles)" in narrow
    assert "(quartiles)" in wider.partition("kernel (one core)")[2].splitlines()[0], (
        "the other hidden columns leave enough space"
    )
    assert "columns hidden" not in shown(large(), 180, terminal=False), "a pipe gets all columns"


def test_idle_time_is_not_negative_with_more_threads_than_cores() -> None:
    report = made_up()
    bench = report.configs[0]
    ways = [dataclasses.replace(one, busy={"forward": 0.1, "backward": 0.02} if one.busy else {}) for one in bench.ways]
    busy = dataclasses.replace(report, configs=[dataclasses.replace(bench, ways=ways)])
    rows = [" ".join(line.split()) for line in shown(busy, 100).splitlines()]
    assert "(of this, waiting for a core) 8.89 8.0 %" in rows
    assert "(idle or between calls)" not in shown(busy, 100)
    assert "(idle or between calls)" in shown(report, 100)


def test_start_lines() -> None:
    bench = made_up().configs[0]
    assert start_lines(bench) == [
        "warm start: first update after 1.25 s (reached: interpreter 0.10, first update 1.25)"
    ]
    cold = dataclasses.replace(bench, cold=StartTimes(1, {"first update": 30.0}))
    assert start_lines(cold)[1].startswith("cold start: first update after 30.00 s")


def test_the_report_as_json() -> None:
    found = json.loads(json.dumps(bench_dict(made_up())))
    way = found["configs"][0]["ways"][2]
    assert way["tokens_per_s"] == pytest.approx(1800)
    assert way["efficiency"] == pytest.approx(0.9)
    assert found["configs"][0]["kernels"][0]["above_floor"] == 2
    assert found["configs"][0]["config"]["name"] == "odd"
    assert found["configs"][0]["precision"] == "float32"
    assert found["configs"][0]["mfu_peak"] == {"precision": "float32", "one": 200, "all": 400}
    assert found["peaks"]["gemm_all"] == 400


@pytest.mark.parametrize("overrides", [(), ("delay=2",), ("lanes=3", "slots=2"), ("gradient_accumulation_steps=2",)])
def test_stage_by_stage_is_the_replay_bit_for_bit(overrides: tuple[str, ...]) -> None:
    one, other = build(tiny(*overrides)), build(tiny(*overrides))
    events = list(stage_by_stage(one, 2))
    assert_same(result(one, events), result(other, run_sequence(other)))


@pytest.mark.parametrize(
    ("overrides", "cores", "most"),
    [
        (("shared_lanes=true", "threads.backward=1", "slots=4"), 3, 1),
        (("shared_lanes=true", "threads.backward=2", "slots=4"), 3, 2),
        (("shared_lanes=true", "threads.backward=3", "slots=4"), 2, 2),
        (("shared_lanes=true", "threads.backward=3", "slots=2"), 3, 2),
        (("lanes=2", "slots=4"), 3, 2),
    ],
)
def test_no_wave_is_wider_than_its_resources(overrides: tuple[str, ...], cores: int, most: int) -> None:
    """A wider wave would deadlock: one micro-batch waits for its predecessor, which waits for a slot that it holds."""
    training = build(tiny(*overrides, "steps=2"))
    begun, waves = training.backward, [0]

    class Counted:
        def acquire(self, item: MicroBatch) -> None:
            begun.acquire(item)
            waves[-1] += 1

        def __call__(self, item: MicroBatch) -> MicroGradient:
            if waves[-1]:
                waves.append(0)
            return begun(item)

    training.backward = Counted()  # type: ignore[assignment]
    # A single thread takes micro-batches in order, so that a wave that is too wide is counted and does not deadlock.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_sequential, "ThreadPoolExecutor", lambda cores, **named: ThreadPoolExecutor(1, **named))
        list(stage_by_stage(training, cores))
    assert max(waves) == most


def test_the_checks_pass() -> None:
    compile_kernels(lambda _: None)
    assert "bit for bit" in check_schedules(2)
    assert "gradient within" in check_kernels(resolve(ODD, 2), every_tensor=True)


def test_the_checks_pass_with_a_vocabulary_of_one_token() -> None:
    """The loss of such a model is 0, and so are its gradients."""
    compile_kernels(lambda _: None)
    one = resolve(apply_overrides(ODD, ["model.vocab_size=1"]), 2)
    assert check_kernels(one, every_tensor=True) == "loss within 0e+00 of float64, gradient within 0e+00 of its length"


def test_a_nonzero_loss_instead_of_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_check, "_loss_and_gradient", lambda *_: 1e-4)
    with pytest.raises(BenchCheckFailed, match="in float64 it is 0"):
        check_kernels(resolve(apply_overrides(ODD, ["model.vocab_size=1"]), 2), every_tensor=False)


def test_a_zero_gradient_of_a_changing_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_check._loss_and_gradient

    def wrong(
        compute: Compute, geometry: Geometry, bank: Bank, slot: MicroBatchSlot, gradients: Bank, scale: float
    ) -> float:
        loss = right(compute, geometry, bank, slot, gradients, scale)
        gradients.arena.flat[:] = 0.0
        return loss

    monkeypatch.setattr(bench_check, "_loss_and_gradient", wrong)
    with pytest.raises(BenchCheckFailed, match=r"is 0\.0 along a direction"):
        check_kernels(resolve(ODD, 2), every_tensor=False)


def test_the_checks_pass_in_bf16x3() -> None:
    """bf16x3 is float32 with another GEMM, which the checks must select."""
    compile_kernels(lambda _: None)
    assert "bit for bit" in check_schedules(2, Precision.BF16X3)
    exact = check_kernels(odd(2, Precision.FLOAT32), every_tensor=False)
    assert check_kernels(odd(2, Precision.BF16X3), every_tensor=False) != exact or not JIT_ENABLED


@pytest.mark.parametrize("tensor", Weights._fields)
def test_a_wrong_gradient_of_any_tensor_is_found(tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_check._loss_and_gradient

    def wrong(
        compute: Compute, geometry: Geometry, bank: Bank, slot: MicroBatchSlot, gradients: Bank, scale: float
    ) -> float:
        loss = right(compute, geometry, bank, slot, gradients, scale)
        gradients.arena[tensor][...] *= np.float32(1.02)
        return loss

    monkeypatch.setattr(bench_check, "_loss_and_gradient", wrong)
    with pytest.raises(BenchCheckFailed, match=f"gradient of {tensor}"):
        check_kernels(resolve(ODD, 2), every_tensor=True)


def test_an_execution_mode_with_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, *arguments: Any) -> None:
            self._source = RandomTokens(*arguments)

        def fill(self, batch: int, micro: int, ids: np.ndarray, targets: np.ndarray) -> None:
            self._source.fill(batch + 1, micro, ids, targets)

    sources = iter([RandomTokens, Other])

    def source(*arguments: Any) -> object:
        return next(sources, RandomTokens)(*arguments)

    monkeypatch.setattr(bench_check, "RandomTokens", source)
    with pytest.raises(BenchCheckFailed, match="gives other bits than the replay"):
        check_schedules(2)


def call_all(cases: Sequence[KernelCase]) -> None:
    """Call each kernel twice; the second call sees the results of the first."""
    for case in cases:
        for _ in range(2):
            if case.prepare:
                case.prepare()
            case.call()


def check_sums(cases: Sequence[KernelCase], precision: Precision) -> None:
    """The bound of the blocks is the sum of their parts; that of the head is lower, as it does not count the logits."""
    peaks = dataclasses.replace(PEAKS, others=(GemmPeak(Precision.BF16, 500.0, 900.0),))
    assert len({case.name for case in cases}) == len(cases)
    assert {case.part_of for case in cases if case.part_of} == {FORWARD, HEAD, BACKWARD}
    by_name = {case.name: case for case in cases}

    def bound(case: KernelCase) -> float:
        return case.calls * roofline_bound_of_steps(case.steps or [(case.work, 1)], peaks, precision)[0]

    for name in (FORWARD, HEAD, BACKWARD):
        whole, parts = by_name[name], [case for case in cases if case.part_of == name]
        products = sum(case.calls * case.work.products for case in parts)
        assert whole.calls * whole.work.products == pytest.approx(products, rel=1e-12)
        if name == HEAD:
            assert whole.work.flops * whole.calls > sum(case.calls * case.work.flops for case in parts), "its LayerNorm"
            assert whole.work.bytes * whole.calls < sum(case.calls * case.work.bytes for case in parts)
        else:
            assert bound(whole) == pytest.approx(sum(map(bound, parts)), rel=1e-12)


def test_every_kernel_of_an_update_can_be_called() -> None:
    config = tiny()
    with gemm_settings(config):
        cases = kernel_bench(config).cases()
        call_all(cases)
    check_sums(cases, Precision.FLOAT32)


def test_rows_used_by_many_tokens_count_once() -> None:
    """14 tokens from a vocabulary of 2 in 7 positions; AdamW changes three of its four arrays in place."""
    config = tiny("model.vocab_size=2", "micro_batch=2")
    with gemm_settings(config):
        bench = kernel_bench(config)
        bench.slot.ids[:] = 0
        bench.slot.ids[3] = 1
        works = {case.name: case.work for case in bench.cases()}
    row = 4 * config.model.channels
    assert works["embedding"].bytes == row * (2 + 7 + 14)
    assert works["d_embedding"].bytes == row * (2 * (2 + 7) + 14)
    assert works["d_embedding"].working_set == row * (2 + 7 + 14)
    assert works["AdamW"].bytes / works["AdamW"].working_set == 7 / 4
    assert works["reduce"].bytes / works["reduce"].working_set == 3 / 2, "two lanes, and the sum in the first one"


def test_the_bytes_of_streaming_passes() -> None:
    assert reduction_bytes(10, 2) == 120
    assert adamw_bytes(10) == 280


def test_the_measured_configuration() -> None:
    config = resolve(measured_config(load_config("nanogpt-cpu"), delay=1), 2)
    assert (config.delay, config.model.vocab_size) == (1, 65)
    assert config.micro_batch
    small = one_layer(config)
    assert (small.model.layers, small.micro_batch, small.model.channels) == (1, 1, 128)


def test_the_peak_is_that_of_the_fastest_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up rates the GEMM of input gradients is the fastest, at the size of a micro-batch."""
    rate = 0.0

    def product(a: np.ndarray, b: np.ndarray, out: np.ndarray, turned_a: bool, turned_b: bool, *_: float) -> None:
        nonlocal rate
        rate = 300e9 if turned_b and a.shape[0] <= 256 else 200e9

    def rate_of(work: Sequence[Work], window: float, windows: int) -> float:
        work[0][0]()
        return rate

    monkeypatch.setattr(bench_peaks, "gemm", product)
    monkeypatch.setattr(bench_peaks, "throughput", rate_of)
    peaks = bench_peaks.measure_peaks(dataclasses.replace(MACHINE, l3=None, memory_available=64 << 20))
    assert peaks.gemm_one == 300


@pytest.mark.soak
def test_peaks_at_full_size() -> None:
    peaks = bench_peaks.measure_peaks(detect(), 1.0, tuple(Precision))
    assert [peak.precision for peak in peaks.others] == [Precision.BF16, Precision.BF16X3]
    assert len(peaks.levels) == len(bench_peaks.LEVEL_BYTES) + 1
    assert all(0 < peak.one <= peak.all for peak in peaks.others)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("quick_peaks")
def test_the_command_from_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(to_json(ODD))
    said = command("bench", "--config", tmp_path / "odd.json", "--seconds", "0.1", "--json", tmp_path / "bench.json")
    assert said.status == 0, said.err
    for words in ("bit for bit", "pipeline τ=2", "stage by stage", "warm start", "AdamW", "backward blocks"):
        assert words in said.out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [way["delay"] for way in found["configs"][0]["ways"]] == [0, 0, 0, 1, 2]
    assert all(way["peak"] > way["base"] > 0 for way in found["configs"][0]["ways"])
