"""The short form of `make targets`: the baseline of x86-64 is run, and 64-bit Arm is compiled."""

import platform
from pathlib import Path

import pytest

from tests.kernels.machine_code import multiplies_tiles, vector_bits
from tests.targets.__main__ import examine, never_compiled
from tests.targets.processors import ARM, BASELINE, PROCESSORS, Processor
from tests.targets.registry import all_kernels, entry_kernels, protocol_kernels, reached_from
from tests.targets.worker import SHORT_CHECKS, Report
from threadloom.kernels import bits16, float32
from threadloom.kernels.common import MODEL_KERNELS
from threadloom.kernels.compiling import target
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.matmul.bf16_kernel import run_bf16

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="without the compiler there is no target")

X86_LOOP = """
.LBB0_1:
	vmovups	(%rax), %zmm1
	vfmadd231ps	(%rcx), %ymm1, %ymm0
	addq	$32, %rax
	jne	.LBB0_1
.LBB0_2:
	vaddps	%zmm0, %zmm1, %zmm2
	retq
"""
ARM_LOOP = """
.LBB0_1:
	ldp	q1, q2, [x8], #32
	fmla	v0.4s, v1.4s, v2.4s
	cbnz	x9, .LBB0_1
	ret
"""


@pytest.fixture
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder for compiled kernels that lasts, if pytest keeps a cache; Numba tells processors apart in it."""
    lasting: pytest.Cache | None = getattr(request.config, "cache", None)
    return tmp_path if lasting is None else lasting.mkdir("targets")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the baseline is x86-64's")
@pytest.mark.targets
@pytest.mark.timeout(400)
def test_the_least_x86_processor_and_arm(cache: Path) -> None:
    """Registers of 128 bits on both, though kernels are compiled on a processor that may have 512."""
    done: dict[Processor, Report] = {}
    reports = examine([BASELINE, ARM], SHORT_CHECKS, cache, done.__setitem__)
    assert done == reports
    baseline, arm = reports[BASELINE], reports[ARM]
    for report in (baseline, arm):
        assert report.failed == [], report.output
        assert report.lanes == 8
        assert {kernel.bits for kernel in report.kernels.values()} <= {0, 64, 128}
        assert not any(kernel.tiles for kernel in report.kernels.values())
        for name in ("float32.attention._forward", "bits16.gelu.gelu_backward", "common.adamw.adamw_update"):
            assert report.kernels[name].bits == 128
    assert baseline.dot_paths == ("FLOAT32",)
    assert {name for name, kernel in baseline.kernels.items() if not kernel.calls} <= entry_names()
    assert set(arm.kernels) == set(baseline.kernels)


def entry_names() -> set[str]:
    entries = {id(kernel) for kernel in entry_kernels()}
    return {str(name) for name, kernel in all_kernels().items() if id(kernel) in entries}


def test_processors_have_distinct_titles_and_run_where_their_features_are() -> None:
    assert len({processor.title for processor in PROCESSORS}) == len(PROCESSORS)
    for processor in PROCESSORS:
        features = dict.fromkeys(processor.features.split(), True)
        assert processor.runs_on(processor.architecture, features)
        assert not processor.runs_on("riscv64", features)
        assert not processor.runs_on(processor.architecture, features | {processor.features.split()[-1]: False})


def test_layers_and_models_contain_all_kernels_that_are_called_through_an_entry() -> None:
    kernels = {id(kernel) for kernel in all_kernels().values()}
    models = [getattr(room, name) for room in (float32, bits16) for name in MODEL_KERNELS]
    reached = reached_from([*protocol_kernels().values(), *models])
    assert any(kernel is run_bf16 for kernel in entry_kernels())
    assert {id(kernel) for kernel in entry_kernels()} <= kernels & reached


def test_a_kernel_that_nothing_compiles_is_reported() -> None:
    assert never_compiled([Report(compiled=["a"], unused=["b", "c"]), Report(compiled=["a", "b"], unused=["c"])]) == [
        "c"
    ]


@pytest.mark.parametrize(("code", "bits"), [(X86_LOOP, 256), (ARM_LOOP, 128), (X86_LOOP.replace("ps", "ss"), 0)])
def test_the_width_is_that_of_arithmetic_in_loops(code: str, bits: int) -> None:
    assert vector_bits(code) == bits
    assert not multiplies_tiles(code)


def test_features_are_those_that_numba_passes_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the host's: an instruction that the compiler may not use would end the process."""
    monkeypatch.setattr("numba.config.CPU_FEATURES", "+avx2,-avx512f")
    assert target.target_features() == {"avx2": True, "avx512f": False}
    monkeypatch.setattr("numba.config.CPU_FEATURES", "")
    assert target.target_features() == {}
    monkeypatch.setattr("numba.config.CPU_FEATURES", None)
    monkeypatch.setattr("numba.config.ENABLE_AVX", False)
    assert not any(present for name, present in target.target_features().items() if name.startswith("avx"))
