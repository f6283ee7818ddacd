"""What multiplies bfloat16 in this process, found out once, and the permission that AMX needs.

Three paths, best first: AMX's tiles (about ten times float32's arithmetic rate on the processors that have them),
AVX-512's dot product of pairs (twice), and float32 arithmetic on operands that are widened in registers (0.45 to 1
times float32's speed, at half of the memory). Linux lets a process use the tiles only after it has asked for the
permission.

Which path runs is a number in memory that compiled code reads by a symbol, as in `kernels.matmul.blas`: Numba's cache
on disk does not know constants of an earlier process.
"""

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from threadloom.kernels.compiling import JIT_ENABLED, TARGET
from threadloom.kernels.simd.vector import LANES


class DotPath(Enum):
    """How products of bfloat16 are made; a higher number is faster where it is available."""

    FLOAT32 = 0  # widened to float32 in registers; runs everywhere
    AVX512 = 1  # VDPBF16PS
    AMX = 2  # TDPBF16PS


@dataclass(frozen=True)
class LowPrecisionInfo:
    """What this process can use for low precision, and what it chose."""

    path: DotPath  # what the kernels call
    available: tuple[DotPath, ...]  # what may be chosen, slowest first
    fp16_conversion: bool  # F16C: float16 is converted by an instruction, not by integer arithmetic
    reason: str  # why it is that path, in a sentence


_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # x86-64 Linux: XFEATURE_XTILEDATA is state 18


@cache
def amx_permission() -> bool:
    """Ask Linux, once in this process, to let its threads use AMX's tiles; return whether it does."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
    except (OSError, AttributeError):
        return False


def choose(features: Mapping[str, bool], permission: Callable[[], bool]) -> LowPrecisionInfo:
    """Return what a processor with these features (LLVM's names) should use; `permission` is asked only for AMX."""
    available = [DotPath.FLOAT32]
    reason = "the processor has neither AMX nor AVX-512 BF16, so bfloat16 is widened to float32"
    dot = features.get("avx512bf16", False) and features.get("avx512f", False)
    if dot:
        available.append(DotPath.AVX512)
        reason = "the processor has AVX-512 BF16 and no AMX"
    if features.get("amx-bf16", False) and features.get("amx-tile", False):
        if not dot:  # no such processor is known: rows outside of whole tiles go through AVX-512
            reason = "the processor has AMX but no AVX-512 BF16, so bfloat16 is widened to float32"
        elif permission():
            available.append(DotPath.AMX)
            reason = "the processor has AMX, and Linux permits its use"
        else:
            reason = "the processor has AMX, but the system does not permit its use: AVX-512 BF16 is used"
    half = features.get("f16c", False)
    return LowPrecisionInfo(available[-1], tuple(available), half, reason)


_FLAG_SYMBOL = "threadloom_low_precision_path"
if JIT_ENABLED:
    _chosen = choose(TARGET, amx_permission)
else:
    _chosen = LowPrecisionInfo(DotPath.FLOAT32, (DotPath.FLOAT32,), False, "the compiler is off: everything is NumPy")
_path = ctypes.c_int32(_chosen.path.value)  # the process's choice; compiled code reads it
llvmlite.binding.add_symbol(_FLAG_SYMBOL, ctypes.addressof(_path))


def low_precision_info() -> LowPrecisionInfo:
    """Return what multiplies bfloat16 in this process."""
    return LowPrecisionInfo(DotPath(_path.value), _chosen.available, _chosen.fp16_conversion, _chosen.reason)


@contextmanager
def dot_path(path: DotPath, emulate: bool = False) -> Iterator[None]:
    """Let every bfloat16 product of the process take `path` within the ``with`` block; for tests and the tuner.

    The choice is process-wide: enter it while no other thread is inside a kernel. `emulate` allows AMX on a target
    with AVX-512 and without tiles: there the same schedule is compiled with tiles in ordinary memory, slow, for tests.
    """
    emulated = emulate and path is DotPath.AMX and LANES == 16 and not TARGET.get("amx-tile", False)
    if path not in _chosen.available and not emulated:
        names = ", ".join(choice.name for choice in _chosen.available)
        raise RuntimeError(f"{path.name} was asked for, but this process has only {names}: {_chosen.reason}")
    earlier = _path.value
    _path.value = path.value
    try:
        yield
    finally:
        _path.value = earlier


@intrinsic
def chosen_path(typing_context: Any) -> Any:
    """Read the process's choice (int32) by its symbol."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(cgutils.add_global_variable(builder.module, ir.IntType(32), _FLAG_SYMBOL))

    return types.int32(), codegen
