"""Kernels that are compiled as callees of others."""

import gc
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import event

from threadloom.kernels.compiling.dispatcher import left_out
from threadloom.kernels.compiling.jit import JIT_ENABLED

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")

SOURCE = """
import numpy as np
from threadloom.kernels.compiling.jit import jit_kernel

@jit_kernel
def inner(x):
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    if total < 0.5:
        raise ValueError("smaller than a half")
    return total

@jit_kernel
def middle(x):
    return inner(x) + np.float32(1.0)

@jit_kernel
def outer(x):
    return middle(x) - inner(x)

@jit_kernel
def show(x):
    print(x)

@jit_kernel
def show_twice(x):
    show(x)
    show(x)
"""
X = np.arange(1, 20, dtype=np.float32)


def load(folder: Path) -> Any:
    path = folder / "sums.py"
    path.write_text(SOURCE, "utf-8")
    spec = importlib.util.spec_from_file_location("sums", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kernels(tmp_path: Path) -> Any:
    return load(tmp_path)


class Compilations(event.Listener):  # type: ignore[misc]
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_start(self, event: Any) -> None:
        self.names.append(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        """Nothing to do."""


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    listener = Compilations()
    with event.install_listener("numba:compile", listener):
        yield listener.names


def has_machine_code(kernel: Any) -> bool:
    (compiled,) = kernel.overloads.values()
    return bool(compiled.library._compiled)


def test_callees_have_no_machine_code_and_no_cache_entry(kernels: Any, tmp_path: Path, compilations: list[str]) -> None:
    assert kernels.outer(X) == 1.0
    assert compilations == ["outer", "middle", "inner"]
    assert [has_machine_code(kernel) for kernel in (kernels.outer, kernels.middle, kernels.inner)] == [
        True,
        False,
        False,
    ]
    assert [path.name.partition("-")[0] for path in tmp_path.rglob("*.nbc")] == ["sums.outer"]


def test_only_an_entry_has_a_wrapper_for_callers_in_c(kernels: Any) -> None:
    kernels.outer(X)
    kernels.inner.enable_entry()
    kernels.inner(X)
    for kernel, has_wrapper in ((kernels.outer, False), (kernels.inner, True)):
        (compiled,) = kernel.overloads.values()
        assert (compiled.fndesc.llvm_cfunc_wrapper_name in compiled.library.get_llvm_str()) is has_wrapper


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_pauses_while_a_kernel_is_compiled(kernels: Any, enabled: bool) -> None:
    seen: list[bool] = []

    class Recorder(event.Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            seen.append(gc.isenabled())

        def on_end(self, event: Any) -> None:
            """Nothing to do."""

    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with event.install_listener("numba:compile", Recorder()):
            kernels.outer(X)
            with pytest.raises(numba.TypingError):
                kernels.outer("no array")
        after = gc.isenabled()
    finally:
        (gc.enable if was_enabled else gc.disable)()
    assert after is enabled, "as it was, also after an error"
    assert len(seen) >= 3
    assert not any(seen)


def test_python_may_call_a_callee_later(kernels: Any, compilations: list[str]) -> None:
    kernels.outer(X)
    assert kernels.inner(X) == float(X @ X)
    assert kernels.inner(X) == float(X @ X)
    assert compilations == ["outer", "middle", "inner", "inner"]
    assert has_machine_code(kernels.inner)
    assert kernels.middle(X) == float(X @ X) + 1.0
    assert compilations[4:] == ["middle"]  # linked from what there is


def test_a_kernel_that_is_left_out_is_neither_compiled_nor_called(kernels: Any, compilations: list[str]) -> None:
    with left_out("outer"):
        with left_out("middle"):
            assert kernels.outer(X) == kernels.middle(X) == 0.0
        assert kernels.middle(X) == float(X @ X) + 1.0
        assert kernels.outer(X) == 0.0
        assert compilations == ["middle", "inner"]
    assert kernels.outer(X) == 1.0
    with left_out("outer", "inner"):
        assert kernels.outer(X) == 1.0, "it is compiled"
        assert kernels.outer(X[::2]) == 0.0, "it is not compiled for such an array"


def test_a_callee_for_other_types_is_compiled_for_those(kernels: Any) -> None:
    kernels.outer(X)
    assert kernels.inner(X[::2]) == float(X[::2] @ X[::2])
    assert kernels.outer(X[::2]) == 1.0


def test_a_compiled_function_that_is_no_kernel_may_call_kernels(kernels: Any) -> None:
    middle = kernels.middle
    assert numba.njit(lambda x: 2.0 * middle(x))(X) == 2.0 * (float(X @ X) + 1.0)


def test_an_error_in_a_callee_arrives(kernels: Any) -> None:
    with pytest.raises(ValueError, match="smaller than a half"):
        kernels.outer(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="smaller than a half"):
        kernels.inner(np.zeros(3, np.float32))


@pytest.mark.usefixtures("kernels")
def test_a_callee_may_need_the_objects_that_python_keeps_for_it(tmp_path: Path) -> None:
    """Numba prints an array as Python does, with its type from the environment of the function that prints.

    In a process with a time limit: compiled code without that environment waits for ever.
    """
    script = "import numpy as np, sums; sums.show_twice(np.arange(2.0))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[0. 1.]\n[0. 1.]\n", done.stderr


def test_an_error_of_the_compiler_leaves_the_next_kernel_as_it_is(kernels: Any) -> None:
    """If the count of compilations were wrong afterwards, a call would find no machine code."""
    with pytest.raises(numba.TypingError):
        kernels.outer("no array")
    assert kernels.outer(X) == 1.0


def test_threads_that_call_all_kernels_at_once(kernels: Any) -> None:
    barrier = Barrier(3)

    def call(kernel: Any) -> float:
        barrier.wait()
        return float(kernel(X))

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(call, (kernels.outer, kernels.middle, kernels.inner)))
    assert results == [1.0, float(X @ X) + 1.0, float(X @ X)]


def test_the_code_of_a_kernel_does_not_depend_on_the_form_of_its_callees(tmp_path: Path) -> None:
    def instructions(*called_before: str) -> list[list[str]]:
        folder = tmp_path / "-".join(("sums", *called_before))
        folder.mkdir()
        kernels = load(folder)
        for name in (*called_before, "outer"):
            getattr(kernels, name)(X)
        module = next(iter(kernels.outer.overloads.values())).library._final_module
        return sorted(
            [instruction.opcode for block in function.blocks for instruction in block.instructions]
            for function in module.functions
            if not function.is_declaration
        )

    alone = instructions()
    assert alone
    assert instructions("inner") == instructions("middle", "inner") == alone
