"""One processor, in a process that Numba compiles for it: compile, run the kernel tests, read the machine code.

The process must be started with the variables of `environment`, which Numba reads when it is imported, and call
`prepare` first. For another architecture than the machine's, `prepare` replaces LLVM's target triple; everything after
it, Numba's compiler and the choices that kernels make by `threadloom.kernels.compiling.TARGET`, is as on that
processor. Its machine code is generated and linked, but not run.
"""

import io
import platform
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.targets.processors import Processor

ROOT = Path(__file__).parents[2]
CHECKS = tuple(f"tests/kernels/{room}" for room in ("simd", "common", "lattice", "matmul", "float32", "bits16"))
"""The tests that are run on a processor: every test of a kernel, except those that start a process."""
SHORT_CHECKS = (
    "tests/kernels/simd",
    "tests/kernels/common",
    "tests/kernels/float32/test_attention.py",
    "tests/kernels/bits16/test_layers.py",
    "tests/kernels/matmul/test_bf16.py",
)
"""A representative part, for the form that runs in CI."""


@dataclass(frozen=True)
class KernelReport:
    """A kernel on one processor."""

    calls: int  # by the tests; 0 if it was only compiled
    error: float | None  # largest relative L2 distance of its results from float64; None if nothing was compared
    of_bound: float | None  # largest error as a share of its bound
    bits: int  # width of the vectors in innermost loops; 0 if there is no arithmetic on vectors
    tiles: bool  # True if an innermost loop multiplies AMX tiles


@dataclass
class Report:
    """A processor."""

    kernels: dict[str, KernelReport] = field(default_factory=dict)  # those that tests call, or that have an entry
    compiled: list[str] = field(default_factory=list)  # kernels with machine code, alone or as a part of others
    unused: list[str] = field(default_factory=list)  # kernels that nothing calls on this processor
    signatures: list[tuple[str, str, Any]] = field(default_factory=list)  # module, name, argument types of `kernels`
    lanes: int = 0  # 32-bit lanes of hand-written vector code
    dot_paths: tuple[str, ...] = ()  # implementations of bfloat16 products that were run
    passed: int = 0  # tests
    failed: list[str] = field(default_factory=list)  # tests, or the reason why there is no report
    output: str = ""  # of pytest, if tests failed
    seconds: float = 0.0


def environment(processor: Processor, cache: Path) -> dict[str, str]:
    """Return the variables that make Numba compile for a processor."""
    return {
        "NUMBA_CPU_NAME": processor.cpu,
        "NUMBA_CPU_FEATURES": processor.numba_features,
        "NUMBA_CACHE_DIR": str(cache),
    }


def prepare(processor: Processor) -> None:
    """Let Numba generate code for the processor's architecture; must run before Numba creates its code generator."""
    if processor.architecture != platform.machine():
        import llvmlite.binding

        llvmlite.binding.initialize_all_targets()
        llvmlite.binding.initialize_all_asmprinters()
        llvmlite.binding.get_process_triple = lambda: processor.triple


def run_here(processor: Processor, checks: Sequence[str]) -> Report:
    """Compile for a processor whose instructions this machine has, and run the tests of `checks`."""
    import pytest

    from tests.targets.observer import Observer

    begin = time.perf_counter()
    observer = Observer()
    output = io.StringIO()
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-m", "not soak and not torch"]
    options += ["-o", "faulthandler_timeout=0"]
    with redirect_stdout(output):
        pytest.main([*options, *(str(ROOT / path) for path in checks)], plugins=[observer])
    report = observer.report()
    report.output = output.getvalue() if report.failed or not report.passed else ""
    report.seconds = time.perf_counter() - begin
    return report


def compile_only(processor: Processor, signatures: Sequence[tuple[str, str, Any]]) -> Report:
    """Compile the kernels of `signatures` for a processor of which this machine lacks instructions."""
    from tests.targets.observer import report_of
    from tests.targets.registry import KernelName, all_kernels

    begin = time.perf_counter()
    kernels = all_kernels()
    names = [KernelName(module, name) for module, name, _ in signatures]
    for name, (*_, types) in zip(names, signatures, strict=True):
        kernels[name].compile(types)
    report = report_of(kernels, dict.fromkeys(names, 0), {})
    report.seconds = time.perf_counter() - begin
    return report
