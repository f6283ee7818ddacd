"""Floating-point environment of kernels: subnormal numbers count as zero, and rounding is to nearest.

An operation on a subnormal number (below 1.2e-38 in float32) takes some 150 cycles on an Intel processor, where an
ordinary one takes less than one. A run with a large learning rate is full of them (small probabilities, the gradient
of a softmax), and each update then takes 20 times as long. So a kernel treats subnormal operands as zero and returns
zero for a subnormal result: MXCSR's DAZ and FTZ on x86-64, FPCR's FZ on 64-bit Arm.

The register belongs to a thread, and Python and NumPy compute with it too. So the wrapper through which Python calls a
kernel saves the register, sets it, calls the kernel, and restores it, which takes some 10 ns; kernels that call each
other do not. Every bit that affects a result is set, so a result does not depend on the thread that calls the kernel:
not on its rounding mode, and not on its own handling of subnormal numbers. Exceptions are masked, and their flags are
discarded with the kernel's value of the register.

LLVM may move arithmetic across a write of the register. It cannot here, because the wrapper itself has no arithmetic,
and Numba does not inline the kernel into it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary

TESTED_NUMBA = "0.68.1"
"""Version of Numba in requirements.lock."""

_INT32, _INT64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_MASKED_EXCEPTIONS, _FTZ, _DAZ = 0x1F80, 0x8000, 0x0040  # bits of MXCSR; round to nearest is zero
_FZ = 1 << 24  # bit of FPCR; its default of zero means masked exceptions and round to nearest


@dataclass(frozen=True)
class ControlRegister:
    """The register of a processor that controls floating-point arithmetic."""

    value: ir.Constant  # in kernels
    read: Callable[[ir.IRBuilder], ir.Value]
    write: Callable[[ir.IRBuilder, ir.Value], None]


def control_register(triple: str) -> ControlRegister | None:
    """Return the register of the target with this LLVM triple, or None if kernels keep subnormal numbers there."""
    processor = triple.partition("-")[0]
    if processor == "x86_64":
        return ControlRegister(ir.Constant(_INT32, _MASKED_EXCEPTIONS | _FTZ | _DAZ), _read_mxcsr, _write_mxcsr)
    if processor in ("aarch64", "arm64"):
        return ControlRegister(ir.Constant(_INT64, _FZ), _read_fpcr, _write_fpcr)
    return None


class KernelLibrary(JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
    """Code of one kernel, whose wrappers set the register."""

    _sets_register = False

    def add_ir_module(self, ir_module: ir.Module) -> None:
        """Add the kernel or one of its wrappers."""
        self._sets_register |= set_in_wrapper(ir_module)
        super().add_ir_module(ir_module)

    def finalize(self) -> None:
        """Compile to machine code; warn if Numba's wrappers are built in a way that `set_in_wrapper` does not know."""
        if not self._sets_register:
            warnings.warn(
                "compiled kernels do not flush subnormal numbers to zero: expected a Numba whose wrapper of a compiled "
                f"function calls it with the attribute noinline, found Numba {numba.__version__} without. A diverging "
                f"run may become slow. Hint: pip install numba=={TESTED_NUMBA}",
                RuntimeWarning,
                stacklevel=2,
            )
        super().finalize()


def set_in_wrapper(module: ir.Module) -> bool:
    """Set the register around the call of the kernel if `module` is a wrapper; return True if it is.

    A wrapper is recognised by the call of the kernel, its only call that must not be inlined.
    """
    found = [
        (block, call)
        for function in module.functions
        for block in function.blocks
        for call in block.instructions
        if isinstance(call, ir.CallInstr) and "noinline" in call.attributes
    ]
    register = control_register(module.triple)
    if register is not None:
        for block, call in found:
            builder = ir.IRBuilder(block)
            builder.position_before(call)
            saved = register.read(builder)
            register.write(builder, register.value)
            builder.position_after(call)
            register.write(builder, saved)
    return bool(found)


def _read_mxcsr(builder: ir.IRBuilder) -> ir.Value:
    memory = builder.alloca(_INT32)  # not by cgutils.alloca_once, which would move the builder
    _call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), builder.bitcast(memory, _POINTER))
    return builder.load(memory)


def _write_mxcsr(builder: ir.IRBuilder, value: ir.Value) -> None:
    memory = builder.alloca(_INT32)
    builder.store(value, memory)
    _call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), builder.bitcast(memory, _POINTER))


def _read_fpcr(builder: ir.IRBuilder) -> ir.Value:
    return _call(builder, "llvm.aarch64.get.fpcr", _INT64)


def _write_fpcr(builder: ir.IRBuilder, value: ir.Value) -> None:
    _call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), value)


def _call(builder: ir.IRBuilder, intrinsic: str, returns: ir.Type, *arguments: ir.Value) -> Any:
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, intrinsic), arguments)
