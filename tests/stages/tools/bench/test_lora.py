"""The checks and the kernels of `threadloom bench` for a model with adapters: its own matrices are frozen."""

from dataclasses import replace

import pytest

from tests.stages.support import LLAMA, TINY, tiny
from tests.stages.tools.bench.conftest import ScaleGradients
from tests.stages.tools.bench.test_bench import call_all
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.stages.config import Config, ResolvedConfig
from threadloom.stages.models import multiplied_parameters
from threadloom.stages.resolve.process_wide import gemm_settings
from threadloom.stages.tools.bench.check import BenchCheckFailed, check_kernels
from threadloom.stages.tools.bench.kernels import kernel_bench
from threadloom.stages.tools.bench.roofline import flops_per_token

pytestmark = pytest.mark.timeout(600)  # includes minutes of compiling with an empty cache

needs_compiler = pytest.mark.skipif(not JIT_ENABLED, reason="training in 16 bits needs the compiler")
PRECISIONS = pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=needs_compiler)])
BASES = pytest.mark.parametrize("base", [TINY, LLAMA], ids=["gpt2", "llama"])


def adapted(base: Config, *overrides: str) -> ResolvedConfig:
    return tiny("lora.rank=3", 'lora.targets=["all-linear"]', *overrides, base=base)


@BASES
@PRECISIONS
def test_the_gradients_of_all_tensors_are_checked(precision: str, base: Config) -> None:
    config = adapted(base, "lora.dropout=0.1", f"precision={precision}")
    assert "gradient within" in check_kernels(config, every_tensor=True)


@pytest.mark.parametrize("tensor", ["qkv_a", "gate_up_b"])
def test_a_wrong_gradient_is_found(tensor: str, scale_gradients: ScaleGradients) -> None:
    scale_gradients(tensor, 1.02)
    with pytest.raises(BenchCheckFailed, match=f"gradient of {tensor}"):
        check_kernels(adapted(LLAMA), every_tensor=True)


@BASES
@PRECISIONS
def test_frozen_tensors_have_no_kernels_for_gradients(precision: str, base: Config) -> None:
    config = adapted(base, f"precision={precision}")
    with gemm_settings(config):
        cases = kernel_bench(config).cases()
        call_all(cases)
    names = {case.name for case in cases}
    assert "d_qkv input" in names
    assert not [name for name in names if name.endswith("weight") or name in ("d_wte", "d_wte slices", "d_embedding")]


@BASES
def test_a_frozen_matrix_takes_two_products(base: Config) -> None:
    config = adapted(base)
    geometry = config.geometry()
    multiplied = multiplied_parameters(replace(geometry, lora=None))
    adapters = multiplied_parameters(geometry) - multiplied
    attention = geometry.layers * geometry.context * geometry.attn_width
    found = flops_per_token(geometry, config.frozen_tensors())
    assert found == 6 * adapters + 4 * multiplied + 6 * attention
    assert flops_per_token(geometry) == 6 * (adapters + multiplied + attention)
