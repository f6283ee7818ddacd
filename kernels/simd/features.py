"""Detection of the fastest bfloat16 dot product that this process may use, and the switch that selects it.

There are three paths, fastest first: AMX tiles (measured: 3 to 8 times the rate of float32), the AVX-512 dot
product of pairs (twice), and float32 arithmetic on operands that are upcast in registers (0.45 to 1 times the speed of
float32, at half of its memory). Linux lets a process use the tiles only after it has requested permission.
"""

import ctypes
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from threadloom.kernels.compiling import JIT_ENABLED, TARGET, ProcessSwitch
from threadloom.kernels.simd.vector import LANES


class DotPath(IntEnum):
    """Implementation of bfloat16 dot products; of the available ones, the highest number is the fastest."""

    FLOAT32 = 0  # upcast to float32 in registers; available everywhere
    AVX512 = 1  # VDPBF16PS
    AMX = 2  # TDPBF16PS


@dataclass(frozen=True)
class LowPrecisionInfo:
    """Low-precision instructions that this process can use, and the path in use."""

    path: DotPath  # used by the kernels now
    available: tuple[DotPath, ...]  # slowest first
    fp16_conversion: bool  # F16C: float16 is converted by an instruction, not by integer arithmetic
    reason: str  # why that path was chosen at start, as a sentence


_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # x86-64 Linux: XFEATURE_XTILEDATA is state 18


@cache
def amx_permission() -> bool:
    """Request, once per process, that Linux lets its threads use AMX tiles; return True if it does."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
    except (OSError, AttributeError):
        return False


def choose(features: Mapping[str, bool], permission: Callable[[], bool]) -> LowPrecisionInfo:
    """Return the choice for a processor with these features (LLVM's names); `permission` is called only for AMX."""
    available = [DotPath.FLOAT32]
    reason = "the processor has neither AMX nor AVX-512 BF16, so bfloat16 is upcast to float32"
    dot = features.get("avx512bf16", False) and features.get("avx512f", False)
    if dot:
        available.append(DotPath.AVX512)
        reason = "the processor has AVX-512 BF16 and no AMX"
    if features.get("amx-bf16", False) and features.get("amx-tile", False):
        if not dot:  # no such processor is known: rows outside of whole tiles go through AVX-512
            reason = "the processor has AMX but no AVX-512 BF16, so bfloat16 is upcast to float32"
        elif permission():
            available.append(DotPath.AMX)
            reason = "the processor has AMX, and Linux permits its use"
        else:
            reason = "the processor has AMX, but the system does not permit its use: AVX-512 BF16 is used"
    half = features.get("f16c", False)
    return LowPrecisionInfo(available[-1], tuple(available), half, reason)


if JIT_ENABLED:
    _default = choose(TARGET, amx_permission)
else:
    _default = LowPrecisionInfo(DotPath.FLOAT32, (DotPath.FLOAT32,), False, "the compiler is off: everything is NumPy")
_switch = ProcessSwitch("threadloom_low_precision_path", tuple(DotPath), _default.path)
read_dot_path = _switch.read
"""Return the process's `DotPath` as an integer; in compiled code only."""


def low_precision_info() -> LowPrecisionInfo:
    """Return the low-precision instructions and the path that this process uses."""
    return LowPrecisionInfo(_switch.current, _default.available, _default.fp16_conversion, _default.reason)


@contextmanager
def dot_path(path: DotPath, emulate: bool = False) -> Iterator[None]:
    """Let every bfloat16 product of the process take `path` within the ``with`` block; for tests and the tuner.

    The choice is process-wide: enter it while no other thread is inside a kernel. With `emulate`, AMX is allowed on a
    target that has AVX-512 and no tiles: the same schedule is compiled with tiles in ordinary memory, slow, for tests.
    RuntimeError if the path is not available.
    """
    emulated = emulate and path is DotPath.AMX and LANES == 16 and not TARGET.get("amx-tile", False)
    if path not in _default.available and not emulated:
        names = ", ".join(choice.name for choice in _default.available)
        raise RuntimeError(f"{path.name} is not available in this process, which has {names}: {_default.reason}")
    with _switch.set_to(path):
        yield
