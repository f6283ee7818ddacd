"""A kernel runs private copies of its callees, whether compiled or loaded, and independent of other loaded kernels."""

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.codegen import JITCodeLibrary

from tests.error_bounds import gamma
from threadloom.kernels.compiling.float_environment import TESTED_NUMBA
from threadloom.kernels.compiling.jit import JIT_ENABLED
from threadloom.kernels.compiling.symbol_visibility import HOOKS, check_hooks, missing_hooks

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled code"),
]

SOURCE = """
import numpy as np
from numba.extending import overload
from threadloom.kernels.compiling.float_environment import TESTED_NUMBA
from threadloom.kernels.compiling.jit import jit_kernel


def overloaded(x):
    pass


@overload(overloaded)
def _overloaded(x):
    def implementation(x):
        s = np.float32(0.0)
        for i in range(x.shape[0]):
            s += x[i]
        return s
    return implementation


@jit_kernel
def inner(x):
    total = np.float32(0.0)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            total += np.exp(x[i, j]) * x[i, j]
        x[i] *= total
    return total


@jit_kernel
def outer(x):
    for _ in range(3):
        inner(x)
    return inner(x) + overloaded(x[0])
"""
RUN = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import sums
x = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)
if "inner" in sys.argv:
    sums.inner(x.copy())
print(json.dumps([float(sums.outer(x)).hex(), x.tobytes().hex()]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sums.py").write_text(SOURCE, "utf-8")
    return tmp_path


def load(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("sums", folder / "sums.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_function_in_a_kernel_is_private_or_its_entry(folder: Path) -> None:
    """If a callee were visible to other kernels, the process would run the copy that was loaded first."""
    sums = load(folder)
    sums.outer(np.ones((5, 37), np.float32))
    (compiled,) = sums.outer.overloads.values()
    functions = [f for f in compiled.library._final_module.functions if not f.is_declaration]
    own = [function.name for function in functions if function.linkage.name != "internal"]
    assert all(function.linkage.name in ("internal", "external") for function in functions)
    assert own
    assert all("outer" in name for name in own), own


def test_a_kernel_can_be_called_by_others(folder: Path) -> None:
    sums, x = load(folder), np.full((2, 3), 0.1, np.float32)
    expected, roundings = x.astype(np.float64), np.zeros(2)  # of the terms of each row; no term is negative
    for _ in range(4):
        total, of_total = 0.0, 0.0
        for i, row in enumerate(expected):
            total += float(np.sum(np.exp(row) * row))
            of_total = max(of_total, roundings[i] * (1.0 + row.max()) + 3.0) + 3.0  # an exponential, a product, a sum
            row *= total
            roundings[i] += of_total + 1.0
    right, bound = total + expected[0].sum(), gamma(int(max(of_total, roundings[0]) + 4.0))
    assert abs(sums.outer(x) / right - 1.0) <= bound


def test_same_bits_compiled_or_loaded_alone_or_after_others(folder: Path) -> None:
    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", RUN, str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        found: list[str] = json.loads(done.stdout)
        return found

    compiled = run()
    assert run() == compiled
    assert run("inner") == compiled


class Renamed:
    """Library in which the finalising step has another name."""

    def finalize(self) -> None:
        self._finalize_module()

    def _finalize_module(self) -> None:
        pass

    def _get_module_for_linking(self) -> object:
        return self._shared_module

    _shared_module = None


def test_this_numba_has_the_overridden_methods() -> None:
    assert missing_hooks(JITCodeLibrary) == []
    with warnings.catch_warnings(action="error"):
        check_hooks(JITCodeLibrary)


def test_a_numba_without_the_overridden_methods_is_reported() -> None:
    assert missing_hooks(Renamed) == [
        "finalize() with _finalize_final_module", "finalize() with _optimize_final_module"
    ]  # fmt: skip
    assert missing_hooks(object) == [f"{method}() with {used}" for method, used in HOOKS]
    words = rf"expected .*finalize\(\).*found Numba {re.escape(numba.__version__)}.*Hint: .*numba=={TESTED_NUMBA}"
    with pytest.warns(RuntimeWarning, match=words):
        check_hooks(Renamed)


def test_the_import_of_the_kernels_warns() -> None:
    code = (
        "import numba.core.codegen as c; c.JITCodeLibrary.finalize = lambda self: None; "
        "import threadloom.kernels.compiling.symbol_visibility"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stderr.count("compiled kernels cannot have private copies of their callees") == 1


def test_the_hint_names_the_locked_version() -> None:
    lock = (Path(__file__).parents[3] / "requirements.lock").read_text("utf-8")
    assert f"\nnumba=={TESTED_NUMBA}\n" in lock
