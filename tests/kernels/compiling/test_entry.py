"""Entries: imports compile nothing, and a call before `prepare` is an error, not a jump to address 0."""

import os
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
from numba.core.errors import TypingError

from threadloom.kernels.compiling.arguments import numba_type, type_of
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


class Rows(NamedTuple):
    """Arguments with arrays, of several formats."""

    source: Floats
    out: Floats


@jit_strict_fp
def _copy(p: Rows) -> None:
    for i in range(p.out.shape[0]):
        p.out[i] = p.source[i]


def rows_of(source: type, out: type) -> Rows:
    return Rows(np.arange(3).astype(source), np.zeros(3, out))


_NARROW, _WIDE = type_of(rows_of(np.float32, np.float32)), type_of(rows_of(np.float64, np.float32))
_ROWS = Entry("threadloom_test_rows", _copy, _NARROW, _WIDE)
_call_rows = _ROWS.call


@jit_strict_fp
def copy_rows(p: Rows) -> None:
    _call_rows(p)


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code calls entries")
def test_an_entry_has_an_address_for_each_type_of_its_argument() -> None:
    narrow, wide = rows_of(np.float32, np.float32), rows_of(np.float64, np.float32)
    _ROWS.prepare(_WIDE)
    copy_rows(wide)
    assert wide.out.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(RuntimeError, match="threadloom_test_rows was called before"):
        copy_rows(narrow)
    _ROWS.prepare()
    copy_rows(narrow)
    assert narrow.out.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code calls entries")
def test_an_argument_of_another_type_is_refused_by_the_compiler() -> None:
    with pytest.raises(TypingError, match=r"threadloom_test_rows has no kernel for Rows.*int32.*only for Rows"):
        copy_rows(rows_of(np.int32, np.float32))


@pytest.mark.skipif(not JIT_ENABLED, reason="only compiled code calls entries")
def test_ctrl_c_while_a_kernel_prepares_itself_is_raised_by_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next call prepares it."""
    out = np.zeros(1, np.float32)

    def interrupted(signature: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_interrupted_kernel, "compile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            interrupted_caller(out)
    interrupted_caller(out)
    assert out.tolist() == [3.0]


@jit_strict_fp
def _interrupted_kernel(p: Arguments) -> None:
    store_float32(p.target.address, p.target.place, p.value)


_INTERRUPTED = Entry("threadloom_test_interrupted_entry", _interrupted_kernel, Arguments, prepares_itself=True)
_interrupted_call = _INTERRUPTED.call


@jit_strict_fp
def interrupted_caller(out: Floats) -> None:
    _interrupted_call(Arguments(Target(address_of(out), 0), Mode.HALVE, np.float32(3.0), False, 0.5))


def test_without_the_compiler_a_call_is_one_of_the_function() -> None:
    code = (
        "from tests.kernels.compiling import test_entry as t\n"
        "rows = t.rows_of(t.np.float32, t.np.float32)\n"
        "t._ROWS.prepare()\n"
        "t.copy_rows(rows)\n"
        "print(rows.out.tolist())"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "[0.0, 1.0, 2.0]\n"


@pytest.mark.skipif(not JIT_ENABLED, reason="nothing is ever compiled")
def test_importing_the_kernels_compiles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "True []\n"
