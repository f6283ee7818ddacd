"""Kernels flush subnormal numbers to zero and round to nearest in any thread, and leave the thread as it was."""

import ctypes
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import pytest
from llvmlite import ir
from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.float_environment import KernelLibrary, set_in_wrapper
from threadloom.kernels.compiling.jit import JIT_ENABLED, jit_kernel, jit_strict_fp

X86, ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() in ("aarch64", "arm64")

pytestmark = pytest.mark.timeout(90)

TINY = float(np.finfo(np.float32).tiny)
"""The smallest normal number of float32."""
IN_KERNELS = 0x9FC0 if X86 else 1 << 24
"""MXCSR: exceptions masked (bits 7 to 12), DAZ (6), FTZ (15), round to nearest. FPCR: FZ (24). (Intel SDM, Arm ARM.)"""
CONTROL = 0xFFC0 if X86 else ~0
"""All bits but the flags of exceptions that have occurred, which every operation may set."""


@pytest.fixture(autouse=True)
def skip_if_kept() -> None:
    if not JIT_ENABLED or not (X86 or ARM):
        pytest.skip("subnormal numbers are kept without compiled code, and on this processor")


@intrinsic
def register(typing_context: Any) -> Any:
    """Read MXCSR or FPCR, in code that does not depend on the package's."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if ARM:
            read = ir.Function(builder.module, ir.FunctionType(ir.IntType(64), []), "llvm.aarch64.get.fpcr")
            return builder.call(read, [])
        memory = builder.alloca(ir.IntType(32))
        pointer = ir.IntType(8).as_pointer()
        store = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [pointer]), "llvm.x86.sse.stmxcsr")
        builder.call(store, [builder.bitcast(memory, pointer)])
        return builder.zext(builder.load(memory), ir.IntType(64))

    return types.int64(), codegen


@numba.njit
def of_this_thread() -> int:
    """Return the register of the thread, from a function that is no kernel."""
    found: int = register()
    return found


@jit_kernel
def in_a_kernel(fail: bool) -> int:
    if fail:
        raise ValueError("a kernel that fails")
    found: int = register()
    return found


@jit_kernel
def products(a: Floats, b: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = a[i] * b[i]


@jit_strict_fp
def differences(a: Floats, b: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = a[i] - b[i]


@contextmanager
def rounding_upward() -> Iterator[None]:
    """Let the arithmetic of this thread round upward, by C's fenv.h."""
    libm, upward = ctypes.CDLL(None), 0x0800 if X86 else 0x00400000
    before = libm.fegetround()
    assert libm.fesetround(upward) == 0
    try:
        yield
    finally:
        libm.fesetround(before)


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def test_results_and_operands_that_are_subnormal_are_zero() -> None:
    out = floats(*[7.0] * 5)
    products(floats(TINY, -TINY, TINY / 4, 1e-30, TINY), floats(0.5, 0.5, 16.0, 1e-30, 1.0), out)
    assert out.tolist() == [0.0, 0.0, 0.0, 0.0, TINY]
    differences(floats(1.5 * TINY, TINY, TINY / 2, 3.0, 2 * TINY), floats(TINY, TINY / 2, 0.0, 3.0, TINY), out)
    assert out.tolist() == [0.0, TINY, 0.0, 0.0, TINY]
    assert float(np.float32(TINY) * np.float32(0.5)) == TINY / 2  # but NumPy keeps them


def test_a_kernel_sets_the_register_of_any_thread_and_restores_it() -> None:
    def body() -> None:
        before = of_this_thread()
        found.append((in_a_kernel(False) & CONTROL, (of_this_thread() ^ before) & CONTROL))
        with pytest.raises(ValueError, match="a kernel that fails"):
            in_a_kernel(True)
        found.append((IN_KERNELS, (of_this_thread() ^ before) & CONTROL))

    found: list[tuple[int, int]] = []
    body()
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(IN_KERNELS, 0)] * 4
    assert of_this_thread() & CONTROL != IN_KERNELS


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "fesetround"), reason="the C library has no fenv.h")
def test_the_bits_of_a_kernel_do_not_depend_on_the_thread_that_calls_it() -> None:
    a, b = floats(*np.linspace(0.1, 0.9, 9)), floats(*np.linspace(1.1, 1.9, 9))
    expected, out = np.empty_like(a), np.empty_like(a)
    products(a, b, expected)
    with rounding_upward():
        before = of_this_thread()
        numpy_rounds_up = (a * b > expected).any()
        products(a, b, out)
        after = of_this_thread()
    assert numpy_rounds_up
    assert out.tobytes() == expected.tobytes()
    assert (before ^ after) & CONTROL == 0
    assert before & CONTROL != IN_KERNELS


def wrapper(triple: str, attribute: str = "noinline") -> ir.Module:
    """Return a module in which a function calls another as the wrappers of Numba do."""
    module = ir.Module("wrapper")
    module.triple = triple
    kernel = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "kernel")
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(ir.VoidType(), []), "caller").append_basic_block())
    builder.call(kernel, [], attrs=(attribute,))
    builder.ret_void()
    return module


@pytest.mark.parametrize(
    ("triple", "write"), [("x86_64-unknown-linux-gnu", "ldmxcsr"), ("aarch64-unknown-linux-gnu", "msr\tFPCR")]
)
def test_both_processors_set_the_register_before_the_call_and_restore_it_after(triple: str, write: str) -> None:
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    module = wrapper(triple)
    assert set_in_wrapper(module)
    try:
        target = llvmlite.binding.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this LLVM does not compile for {triple}")
    machine = target.create_target_machine(reloc="static", codemodel="small")
    lines = machine.emit_assembly(llvmlite.binding.parse_assembly(str(module))).splitlines()
    writes = [number for number, line in enumerate(lines) if write in line]
    (call,) = [number for number, line in enumerate(lines) if line.split()[:1] in (["callq"], ["bl"])]
    assert len(writes) == 2
    assert writes[0] < call < writes[1]


def test_another_processor_keeps_its_register() -> None:
    module = wrapper("riscv64-unknown-linux-gnu")
    before = str(module)
    assert set_in_wrapper(module)
    assert str(module) == before


def test_a_numba_with_other_wrappers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JITCodeLibrary, "finalize", lambda library: None)
    known, other = (KernelLibrary(cpu_target.target_context.codegen(), name) for name in ("known", "other"))
    triple = llvmlite.binding.get_process_triple()
    known.add_ir_module(wrapper(triple))
    other.add_ir_module(wrapper(triple, attribute="alwaysinline"))
    with warnings.catch_warnings(action="error"):
        known.finalize()
    words = r"do not flush subnormal numbers.*found Numba .*Hint: pip install numba=="
    with pytest.warns(RuntimeWarning, match=words):
        other.finalize()
