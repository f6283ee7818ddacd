"""`threadloom bench`: its kernels, peaks and configurations, and the command from end to end."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.error_bounds import FLOAT64, gamma
from tests.stages.support import command, tiny
from tests.stages.tools.bench.test_report import PEAKS
from tests.stages.tools.doctor.test_doctor import MACHINE
from threadloom.stages.config.settings import Precision
from threadloom.stages.machine import Work, detect
from threadloom.stages.memory import adamw_bytes, reduction_bytes
from threadloom.stages.resolve.loading import load_config, to_json
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.tools.bench import peaks as bench_peaks
from threadloom.stages.tools.bench.check import ODD
from threadloom.stages.tools.bench.kernel_bench import BACKWARD, FORWARD, HEAD
from threadloom.stages.tools.bench.kernel_case import KernelCase
from threadloom.stages.tools.bench.kernels import kernel_bench
from threadloom.stages.tools.bench.measurements import one_layer
from threadloom.stages.tools.bench.roofline import (
    GemmPeak,
    roofline_bound_of_steps,
)
from threadloom.stages.training.short_run import measured_config


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
        assert whole.calls * whole.work.products == pytest.approx(products, rel=gamma(len(parts) + 4, FLOAT64))
        if name == HEAD:
            assert whole.work.flops * whole.calls > sum(case.calls * case.work.flops for case in parts), "its LayerNorm"
            assert whole.work.bytes * whole.calls < sum(case.calls * case.work.bytes for case in parts)
        else:
            assert bound(whole) == pytest.approx(sum(map(bound, parts)), rel=gamma(len(parts) + 4, FLOAT64))


@pytest.mark.parametrize("delay", [("delay=0",), ("delay=1", "delay_correction=lead"), ("delay=2",)], ids=str)
def test_every_kernel_of_an_update_can_be_called(delay: tuple[str, ...]) -> None:
    config = tiny(*delay)
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


def test_an_update_of_forecasts_moves_the_weights_too() -> None:
    """Gradient, moments and weights are read; moments, weights and the forecast are written, three in place."""
    config = tiny("delay=2")
    with gemm_settings(config):
        work = next(case.work for case in kernel_bench(config).cases() if case.name == "AdamW")
    assert work.bytes / work.working_set == 8 / 5


def test_the_bytes_of_streaming_passes() -> None:
    assert reduction_bytes(10, 2) == 120
    assert adamw_bytes(10) == 280
    assert adamw_bytes(10, forecasts=True) == 320


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
    peaks = bench_peaks.measure_peaks(dataclasses.replace(MACHINE, l3=None, memory_available=64 << 20), 2)
    assert peaks.gemm_one == 300


def test_an_embedding_of_low_rank_is_refused() -> None:
    said = command("bench", "--config", "nanogpt-cpu", "--set", "embedding.rank=32")
    assert said.status == 1
    assert "embedding.rank: expected a plain embedding" in said.err
    assert "threadloom train" in said.err


@pytest.mark.soak
def test_peaks_at_full_size() -> None:
    peaks = bench_peaks.measure_peaks(detect(), 2, 1.0, tuple(Precision))
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
