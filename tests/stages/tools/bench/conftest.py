"""Fixtures of the tests of `threadloom bench`."""

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from threadloom.stages.config import Precision
from threadloom.stages.machine import Machine
from threadloom.stages.tools.bench import measurements, peaks as bench_peaks
from threadloom.stages.tools.bench.roofline import Peaks


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Peaks]:
    """Measure peaks once each and with small arrays, in `threadloom bench` too; full size takes 10 s of CPU time."""
    monkeypatch.setattr(bench_peaks, "WINDOWS", 1)
    monkeypatch.setattr(bench_peaks, "GEMM_SIZES", (128, 256))
    monkeypatch.setattr(bench_peaks, "LEVEL_BYTES", (1 << 18, 1 << 20))
    monkeypatch.setattr(bench_peaks, "LEAST_STREAM", 4 << 20)

    def measure(machine: Machine, seconds: float = 0.1, precisions: Collection[Precision] = ()) -> Peaks:
        return bench_peaks.measure_peaks(replace(machine, l3=None), seconds, precisions)

    monkeypatch.setattr(measurements, "measure_peaks", measure)
    return measure
