"""Entries: imports compile nothing, and a call before `prepare` is an error, not a jump to address 0."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import numpy as np
import pytest
from numba import typeof, types

from threadloom.kernels.compiling.arguments import numba_type
from threadloom.kernels.compiling.arrays import Floats
from threadloom.kernels.compiling.entry import Entry
from threadloom.kernels.compiling.jit import JIT_ENABLED, jit_strict_fp
from threadloom.kernels.matmul.operands import address_of
from threadloom.kernels.simd.vector import store_float32

ROOT = Path(__file__).parents[3]

IMPORT_ALL = """
import importlib, pkgutil, sys
from numba.core.dispatcher import Dispatcher
import threadloom.kernels
import threadloom.stages.run
for module in pkgutil.walk_packages(threadloom.kernels.__path__, "threadloom.kernels."):
    importlib.import_module(module.name)
names = (value for module in list(sys.modules.values()) for value in vars(module).values())
kernels = {id(value): value for value in names if isinstance(value, Dispatcher)}
print(len(kernels) > 50, [kernel.__name__ for kernel in kernels.values() if kernel.overloads])
"""


class Mode(IntEnum):
    """Argument of the test kernel."""

    HALVE = 0
    DOUBLE = 1


class Target(NamedTuple):
    """Nested group."""

    address: int
    place: int


class Arguments(NamedTuple):
    """Arguments of every kind."""

    target: Target
    mode: Mode
    value: np.float32
    negate: bool
    scale: float


@jit_strict_fp
def _kernel(p: Arguments) -> None:
    value = p.value * np.float32(p.scale)
    if p.mode == Mode.DOUBLE:
        value = value * np.float32(2.0)
    store_float32(p.target.address, p.target.place, -value if p.negate else value)


_ENTRY = Entry("threadloom_test_entry", _kernel, Arguments)
_call = _ENTRY.call


@jit_strict_fp
def caller(out: Floats, mode: Mode, negate: bool) -> None:
    _call(Arguments(Target(address_of(out), 1), mode, np.float32(3.0), negate, 0.5))


def test_a_named_tuple_has_the_types_of_its_annotations() -> None:
    members = [
        types.NamedUniTuple(types.intp, 2, Target), types.IntEnumMember(Mode, types.int64), types.float32,
        types.boolean, types.float64,
    ]  # fmt: skip
    assert numba_type(Arguments) == types.NamedTuple(members, Arguments)


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code calls entries")
def test_a_call_needs_prepare() -> None:
    out = np.zeros(3, np.float32)
    with pytest.raises(RuntimeError, match=r"threadloom_test_entry was called before prepare\(\)"):
        caller(out, Mode.DOUBLE, False)
    _ENTRY.prepare()
    caller(out, Mode.DOUBLE, False)
    assert out.tolist() == [0.0, 3.0, 0.0]
    caller(out, Mode.HALVE, True)
    assert out.tolist() == [0.0, -1.5, 0.0]


_SELF_ENTRY = Entry("threadloom_test_self_entry", _kernel, Arguments, prepares_itself=True)
_self_call = _SELF_ENTRY.call


@jit_strict_fp
def self_caller(out: Floats) -> None:
    _self_call(Arguments(Target(address_of(out), 0), Mode.DOUBLE, np.float32(3.0), False, 0.5))


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code calls entries")
def test_an_entry_that_prepares_itself_needs_no_prepare_in_any_thread() -> None:
    """The first callers come at once, without the GIL, and all wait for the kernel."""
    outs = [np.zeros(1, np.float32) for _ in range(4)]
    self_caller.compile((typeof(outs[0]),))  # type: ignore[attr-defined]
    start = Barrier(len(outs))

    def work(out: Floats) -> None:
        start.wait(timeout=30)
        self_caller(out)

    with ThreadPoolExecutor(len(outs)) as pool:
        list(pool.map(work, outs))
    assert [out.tolist() for out in outs] == [[3.0]] * len(outs)


@pytest.mark.skipif(not JIT_ENABLED, reason="nothing is ever compiled")
def test_importing_the_kernels_compiles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "True []\n"
