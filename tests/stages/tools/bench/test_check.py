"""The checks of `threadloom bench` pass for right kernels and schedules, and find wrong ones."""

from typing import Any

import numpy as np
import pytest

from tests.stages.tools.bench.conftest import ScaleGradients
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config.settings import Precision
from threadloom.stages.data.batches import RandomTokens
from threadloom.stages.models import parameter_shapes
from threadloom.stages.resolve.loading import apply_overrides
from threadloom.stages.resolve.resolution import resolve
from threadloom.stages.tools.bench import check as bench_check
from threadloom.stages.tools.bench.check import ODD, BenchCheckFailed, check_kernels, check_schedules, odd
from threadloom.stages.training.warmup import compile_kernels


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


def test_a_zero_gradient_of_a_changing_loss_is_found(scale_gradients: ScaleGradients) -> None:
    scale_gradients(None, 0.0)
    with pytest.raises(BenchCheckFailed, match=r"is 0\.0 along a direction"):
        check_kernels(resolve(ODD, 2), every_tensor=False)


def test_the_checks_pass_in_bf16x3() -> None:
    """bf16x3 is float32 with another GEMM, which the checks must select."""
    compile_kernels(lambda _: None)
    assert "bit for bit" in check_schedules(2, Precision.BF16X3)
    exact = check_kernels(odd(2, Precision.FLOAT32), every_tensor=False)
    assert check_kernels(odd(2, Precision.BF16X3), every_tensor=False) != exact or not JIT_ENABLED


@pytest.mark.parametrize("tensor", parameter_shapes(resolve(ODD, 2).geometry()))
def test_a_wrong_gradient_of_any_tensor_is_found(tensor: str, scale_gradients: ScaleGradients) -> None:
    scale_gradients(tensor, 1.02)
    with pytest.raises(BenchCheckFailed, match=f"gradient of {tensor}"):
        check_kernels(resolve(ODD, 2), every_tensor=True)


def test_an_execution_mode_with_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, *arguments: Any) -> None:
            self._source = RandomTokens(*arguments)

        def fill(self, batch: int, micro: int, ids: np.ndarray, targets: np.ndarray) -> None:
            self._source.fill(batch + 1, micro, ids, targets)

        def counted(self, batch: int) -> int:
            return self._source.counted(batch)

    sources = iter([RandomTokens, Other])

    def source(*arguments: Any) -> object:
        return next(sources, RandomTokens)(*arguments)

    monkeypatch.setattr(bench_check, "RandomTokens", source)
    with pytest.raises(BenchCheckFailed, match="gives other bits than the replay"):
        check_schedules(2)
