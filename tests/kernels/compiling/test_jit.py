"""Compiler flags are in one module."""

import ast
from pathlib import Path

import pytest

from threadloom import kernels

COMPILERS = {"jit", "njit", "vectorize", "guvectorize", "stencil", "cfunc", "jit_module", "generated_jit"}
OVERLOADS = {"overload", "overload_method", "overload_attribute", "register_jitable"}
PACKAGE = Path(kernels.__file__).parent
JIT_MODULES = {"threadloom.kernels.compiling", "threadloom.kernels.compiling.jit"}


def has_other_options(call: ast.Call, from_jit: set[str]) -> bool:
    """Return True if a call is an ``overload`` that is neither inlined into its caller nor has options of jit.py."""
    if getattr(call.func, "id", getattr(call.func, "attr", None)) not in OVERLOADS:
        return False
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return keywords.get("jit_options") not in from_jit and keywords.get("inline") != "'always'"


def makes_dispatcher(call: ast.Call) -> bool:
    """Return True if a call makes a dispatcher, which is what the decorators do."""
    return ast.unparse(call.func).rpartition(".")[2] in ("KernelDispatcher", "CPUDispatcher", "Dispatcher")


def compilers_used(source: str) -> list[str]:
    """Return every mention of a Numba decorator, by attribute (numba.njit) or by import (from numba import njit).

    And every ``overload`` with flags that are not from jit.py, and every dispatcher that is made directly.
    """
    found = []
    nodes = list(ast.walk(ast.parse(source)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module in JIT_MODULES]
    from_jit = {name.asname or name.name for node in imports for name in node.names}
    for node in nodes:
        if isinstance(node, ast.Call) and (has_other_options(node, from_jit) or makes_dispatcher(node)):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Attribute) and node.attr in COMPILERS:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba":
            found += [f"line {node.lineno}: {name.name}" for name in node.names if name.name in {*COMPILERS, "*"}]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda path: path.stem)
def test_only_jit_py_uses_a_numba_decorator(path: Path) -> None:
    found = compilers_used(path.read_text(encoding="utf-8"))
    assert bool(found) == (path.name == "jit.py"), found


@pytest.mark.parametrize(
    "source",
    [
        "import numba\n@numba.njit\ndef f(): ...",
        "import numba as nb\n@nb.jit(nogil=True)\ndef f(): ...",
        "from numba import njit as fast\n@fast\ndef f(): ...",
        "from numba.core.decorators import njit\n",
        "import numba\nf = numba.vectorize(lambda x: x)",
        "from numba import *",
        "f = KernelDispatcher(g, targetoptions={'boundscheck': True})",
        "@overload(f)\ndef g(x): ...",
        "@extending.overload(f, jit_options={'fastmath': True})\ndef g(x): ...",
        "OPTIONS = {}\n@overload(f, jit_options=OPTIONS)\ndef g(x): ...",
    ],
)
def test_a_numba_decorator_is_found(source: str) -> None:
    assert compilers_used(source)


@pytest.mark.parametrize(
    "source",
    [
        (
            "from threadloom.kernels.compiling.jit import OVERLOAD_OPTIONS\n"
            "@overload(f, jit_options=OVERLOAD_OPTIONS)\ndef g(x): ..."
        ),
        "@overload(f, inline='always')\ndef g(x): ...",
    ],
)
def test_an_overload_with_flags_of_jit_py_is_allowed(source: str) -> None:
    assert not compilers_used(source)
