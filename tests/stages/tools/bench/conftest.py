"""Fixtures of the tests of `threadloom bench`."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pytest

from threadloom.stages.config import Precision
from threadloom.stages.machine import Machine
from threadloom.stages.memory.bank import Bank
from threadloom.stages.tools.bench import check as bench_check, measurements, peaks as bench_peaks
from threadloom.stages.tools.bench.roofline import Peaks


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Peaks]:
    """Measure peaks once each and with small arrays, in `threadloom bench` too; full size takes 10 s of CPU time."""
    monkeypatch.setattr(bench_peaks, "WINDOWS", 1)
    monkeypatch.setattr(bench_peaks, "GEMM_SIZES", (128, 256))
    monkeypatch.setattr(bench_peaks, "LEVEL_BYTES", (1 << 18, 1 << 20))
    monkeypatch.setattr(bench_peaks, "LEAST_STREAM", 4 << 20)

    def measure(machine: Machine, cores: int, seconds: float = 0.1, precisions: Collection[Precision] = ()) -> Peaks:
        return bench_peaks.measure_peaks(replace(machine, l3=None), cores, seconds, precisions)

    monkeypatch.setattr(measurements, "measure_peaks", measure)
    return measure


class ScaleGradients(Protocol):
    def __call__(self, tensor: str | None, factor: float) -> None:
        """Multiply the gradient of a tensor, or of all of them (None), before the checks see it."""


@pytest.fixture
def scale_gradients(monkeypatch: pytest.MonkeyPatch) -> ScaleGradients:
    right = bench_check._loss_and_gradient

    def scale(tensor: str | None, factor: float) -> None:
        def wrong(compute: Any, geometry: Any, bank: Any, slot: Any, gradients: Bank, loss_scale: float) -> float:
            loss = right(compute, geometry, bank, slot, gradients, loss_scale)
            arena = gradients.arena
            (arena.flat if tensor is None else arena[tensor])[...] *= np.float32(factor)
            return loss

        monkeypatch.setattr(bench_check, "_loss_and_gradient", wrong)

    return scale
