"""The checks and the kernels of `threadloom bench` for a model of the Llama family."""

import pytest

from tests.stages.support import LLAMA, tiny
from tests.stages.tools.bench.conftest import ScaleGradients
from tests.stages.tools.bench.test_bench import call_all
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config import ModelArchitecture
from threadloom.stages.config.settings import Precision
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.tools.bench.check import BenchCheckFailed, check_kernels, check_schedules, odd
from threadloom.stages.tools.bench.kernels import kernel_bench

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
PRECISIONS = pytest.mark.parametrize(
    "precision", [Precision.FLOAT32, *(pytest.param(p, marks=needs_compiler) for p in (Precision.BF16, Precision.FP16))]
)
ARCHITECTURE = ModelArchitecture.LLAMA


@pytest.mark.skipif(not JIT_ENABLED, reason="the schedules of a dozen trainings need the compiler")
@PRECISIONS
def test_the_checks_pass(precision: Precision) -> None:
    assert "bit for bit" in check_schedules(2, precision, ARCHITECTURE)
    assert "gradient within" in check_kernels(odd(2, precision, architecture=ARCHITECTURE), every_tensor=True)


@pytest.mark.parametrize("tensor", ["wte", "head", "gate_up_weight", "k_norm_weight", "down_bias"])
def test_a_wrong_gradient_is_found(tensor: str, scale_gradients: ScaleGradients) -> None:
    scale_gradients(tensor, 1.02)
    with pytest.raises(BenchCheckFailed, match=f"gradient of {tensor}"):
        check_kernels(odd(2, Precision.FLOAT32, architecture=ARCHITECTURE), every_tensor=True)


@PRECISIONS
def test_every_kernel_of_an_update_can_be_called(precision: Precision) -> None:
    config = tiny(f"precision={precision.value}", base=LLAMA)
    with gemm_settings(config):
        call_all(kernel_bench(config).cases())
