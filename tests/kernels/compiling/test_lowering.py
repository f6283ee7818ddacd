"""Kernels that only borrow their arguments: no copies of tuples, no reference counts, and nothing is lost or freed."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

from threadloom.kernels.compiling.jit import JIT_ENABLED

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code")

IMPORT = "from threadloom.kernels.compiling.jit import jit_inline_body, jit_kernel"
INTERPRETED = "jit_inline_body = jit_kernel = lambda function: function"
SOURCE = """
from typing import Any, NamedTuple
import numpy as np
IMPORT


class Pair(NamedTuple):
    a: Any
    b: Any


class Model(NamedTuple):
    first: Pair
    second: Pair
    scale: float
    on: bool
    steps: Any
    more: Any


@jit_kernel
def add(x, y):
    for i in range(y.size):
        y[i] += x[i]


@jit_kernel
def same(x):
    return x


@jit_inline_body
def layer(pair, n):
    return Pair(pair.a[n], pair.b[n])


@jit_kernel
def borrows(model, n):
    # fields of fields, copies, a tuple that is unpacked, an inlined function, a view with another shape
    first, second, scale, on, steps, more = model.first, model.second, model.scale, model.on, model.steps, model.more
    copy = first
    for i in range(n):
        one = layer(copy if i % 2 else second, i)
        if on:
            add(one.a, one.b)
        add(model.first.a[i].reshape(2, -1)[1], steps[0][:2])
        one.b[0] *= scale * len(steps) * more[7][i]


@jit_kernel
def exchanges(model, n):
    # variables that are parts of an argument, but not always the same
    x, y, last = model.first, model.second, model.first
    for i in range(n):
        x, y = y, x
        if i == 1:
            last = x
        add(x.a[i], last.b[i])
    return last.b[0, 1]


@jit_kernel
def allocates(model, n):
    buffer = np.zeros(model.first.a.shape[1], np.float64)
    for i in range(n):
        add(model.first.a[i], buffer)
        buffer = buffer + 1.0
    return buffer.sum()


@jit_kernel
def gets_from_a_callee(model, n):
    total = 0.0
    for i in range(n):
        total += same(model.first.a[i])[0] + same(np.ones(3))[1]
    return total


@jit_kernel
def copies_rows(model, n):
    return model.first.a[np.arange(n)].sum()


@jit_kernel
def returns_a_part(model, n):
    return model.second.b[n:]


@jit_kernel
def iterates(model, n):
    total = 0.0
    for row in model.first.a:
        total += row[n]
    return total
"""
BORROWING = ("borrows", "exchanges")
COUNTING = ("allocates", "gets_from_a_callee", "copies_rows", "returns_a_part", "iterates")


def load(folder: Path, name: str, decorators: str) -> Any:
    path = folder / f"{name}.py"
    path.write_text(SOURCE.replace("IMPORT", decorators), "utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compiled(tmp_path: Path) -> Any:
    return load(tmp_path, "borrowed", IMPORT)


def model_of(module: Any) -> Any:
    a, b, c, d = np.random.default_rng(3).standard_normal((4, 4, 4))
    steps, more = (np.zeros(3), np.ones(3)), tuple(np.full(4, float(i)) for i in range(32))
    return module.Model(module.Pair(a, b), module.Pair(c, d), 0.5, True, steps, more)


def arrays_of(model: Any) -> list[Any]:
    return [*model.first, *model.second, *model.steps, *model.more]


def own_code(kernel: Any) -> str:
    """Return the kernel's own function in LLVM's code, as it is before callees are inlined."""
    (overload,) = kernel.overloads.values()
    library = overload.library
    (own,) = (f for f in library._shared_module.functions if f.name == overload.fndesc.mangled_name)
    return str(own)


@contextmanager
def counted() -> Iterator[Any]:
    """Count the allocations of compiled code; yield the counts of the start."""
    enabled = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    try:
        yield rtsys.get_allocation_stats()
    finally:
        if not enabled:
            _nrt_python.memsys_disable_stats()


@pytest.mark.parametrize("name", [*BORROWING, *COUNTING])
def test_results_are_those_of_python_and_every_reference_is_released(compiled: Any, name: str, tmp_path: Path) -> None:
    interpreted = load(tmp_path, "interpreted", INTERPRETED)
    kernel, model, twin = getattr(compiled, name), model_of(compiled), model_of(interpreted)
    result, expected = kernel(model, 3), getattr(interpreted, name)(twin, 3)
    if expected is None:
        assert result is None
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-12)
    for array, wanted in zip(arrays_of(model), arrays_of(twin), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-12)
    del result, expected
    held = [sys.getrefcount(array) for array in arrays_of(model)]
    with counted() as before:
        for _ in range(20):
            kernel(model, 3)
        after = rtsys.get_allocation_stats()
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free
    assert [sys.getrefcount(array) for array in arrays_of(model)] == held


@pytest.mark.parametrize("name", [*BORROWING, *COUNTING])
def test_only_a_kernel_that_creates_references_counts_them(compiled: Any, name: str) -> None:
    kernel = getattr(compiled, name)
    kernel(model_of(compiled), 3)
    assert ("NRT_" in own_code(kernel)) is (name in COUNTING)


def test_a_kernel_of_few_arrays_is_compiled_as_by_numba(compiled: Any) -> None:
    """So that it keeps its bits: LLVM may order the sums of a loop in another way if the code around it differs."""
    model = model_of(compiled)
    compiled.borrows(model._replace(more=model.more[:8]), 3)
    assert "NRT_" in own_code(compiled.borrows)


def test_the_code_grows_with_the_fields_that_are_read_and_not_with_those_of_the_tuple(tmp_path: Path) -> None:
    def instructions(fields: int) -> int:
        names = "".join(f"    f{i}: Any\n" for i in range(fields))
        source = f"""{IMPORT}
from typing import Any, NamedTuple

class Wide(NamedTuple):
{names}

@jit_inline_body
def part(wide, n):
    return wide.f0[n] if n % 2 else wide.f1[n]

@jit_kernel
def kernel(wide, n):
    total = 0.0
    for i in range(n):
        same, again = wide, wide
        total += part(same, i) * part(again, i) + part(wide, i)
    return total
"""
        path = tmp_path / f"wide{fields}.py"
        path.write_text(source, "utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.kernel(module.Wide(*(np.ones(3) for _ in range(fields))), 3)
        return len(own_code(module.kernel).splitlines())

    arguments = 12  # instructions for each array that is an argument: its numbers become a structure
    assert instructions(72) - instructions(36) < 36 * arguments
