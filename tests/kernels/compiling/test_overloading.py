"""Functions whose body is chosen by types: the right one, the caller's flags, and no machine code of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import types
from numba.core import event
from numba.core.caching import NullCache
from numba.core.codegen import JITCodeLibrary

from threadloom.kernels.compiling import JIT_ENABLED, jit_kernel, jit_strict_fp, overload_inline

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")


def _half(x: Any) -> float:
    raise AssertionError("only compiled code calls it")


@overload_inline(_half)
def _choose(x: Any) -> Any:
    return _half_of_integers if isinstance(x.dtype, types.Integer) else _half_of_floats


@jit_strict_fp
def _total(x: Any) -> float:
    total = 0.0
    for i in range(x.size):
        total += x[i]
    return total


def _half_of_integers(x: Any) -> int:
    return int(_total(x)) // 2


def _half_of_floats(x: Any) -> float:
    return _total(x) / 2.0


@jit_kernel
def _kernel(x: Any) -> float:
    return _half(x) + _half(x)


def test_types_choose_the_body() -> None:
    assert _kernel(np.array([1.0, 2.0])) == 3.0
    assert _kernel(np.array([1, 2])) == 2


def test_only_the_kernel_has_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, machine_code = [], []

    @jit_kernel
    def kernel(x: Any) -> float:
        return _half(x) + _half(x)

    kernel._cache = NullCache()  # type: ignore[attr-defined]  # so it is compiled, whatever an earlier run has cached

    class Compilations(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            compiled.append(event.data["dispatcher"].py_func.__name__)

        def on_end(self, event: Any) -> None:
            """Nothing to do."""

    optimize: Callable[[Any], None] = JITCodeLibrary._optimize_final_module

    def recorded(library: Any) -> None:
        machine_code.append(library.name)
        optimize(library)

    monkeypatch.setattr(JITCodeLibrary, "_optimize_final_module", recorded)
    with event.install_listener("numba:compile", Compilations()):
        kernel(np.ones(3, np.float32))
    assert "_half_of_floats" in compiled
    names = (name.rpartition(".")[2] for name in machine_code)
    assert [name for name in names if name in {"kernel", "_half_of_floats", "_total"}] == ["kernel"]
