"""Compiler flags live in one place, and no kernel allocates."""

import ast
from pathlib import Path

import pytest

import kernels

COMPILERS = {"jit", "njit", "vectorize", "guvectorize", "stencil", "cfunc", "jit_module", "generated_jit"}
PACKAGE = Path(kernels.__file__).parent


def compilers_used(source: str) -> list[str]:
    """Return every mention of a Numba decorator, by attribute (numba.njit) or by import (from numba import njit)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in COMPILERS:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba":
            found += [f"line {node.lineno}: {name.name}" for name in node.names if name.name in {*COMPILERS, "*"}]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("**/*.py")), ids=lambda path: path.stem)
def test_only_jit_py_names_a_compiler(path: Path) -> None:
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
    ],
)
def test_a_decorator_around_it_is_found(source: str) -> None:
    assert compilers_used(source)
