"""The digests of the sources that a kernel depends on, against imports that Python's own parser finds."""

import ast
import shutil
from pathlib import Path

import pytest

import threadloom.kernels
from threadloom.kernels.compiling import SOURCES
from threadloom.kernels.compiling.source_digest import SourceDigests

PACKAGE = Path(threadloom.kernels.__file__).parent
NAME = "threadloom.kernels"


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "kernels"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def modules(folder: Path) -> list[str]:
    paths = [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    return [".".join(path.relative_to(folder).with_suffix("").parts) for path in paths]


def defining_modules(module: str) -> set[str]:
    """Return the modules that define the names a module imports from the package, found by importing them."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME):
            for alias in node.names:
                found |= where_defined(str(node.module), alias.name)
    return found


def where_defined(module: str, name: str) -> set[str]:
    """Follow re-exports, read by Python's parser, to the module with the definition."""
    path = PACKAGE / module.removeprefix(NAME).lstrip(".").replace(".", "/")
    if not path.is_dir():
        return {module.removeprefix(f"{NAME}.")}
    for node in ast.walk(ast.parse((path / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return where_defined(str(node.module), name)
    return {f"{module}.{name}".removeprefix(f"{NAME}.")}


def test_the_files_of_every_module_are_closed_under_its_imports() -> None:
    digests = SourceDigests(PACKAGE, NAME)
    direct = {module: defining_modules(module) for module in modules(PACKAGE)}
    for module in direct:
        files = digests.files_of(module)
        assert module in files
        for file in files & direct.keys():
            assert direct[file] <= files, f"{module}: {file}"


def test_an_edit_changes_the_digests_of_the_modules_that_import_the_file(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    before = SourceDigests(folder, NAME)
    for module in ("simd.exponential", "common.gelu", "matmul.tile", "compiling.target"):
        path = folder / f"{module.replace('.', '/')}.py"
        source = path.read_bytes()
        path.write_bytes(source + b"\n")
        after = SourceDigests(folder, NAME)
        path.write_bytes(source)
        for other in modules(folder):
            changed = after.of_module(f"{NAME}.{other}") != before.of_module(f"{NAME}.{other}")
            assert changed == (module in before.files_of(other)), f"{module} edited, {other}"
        assert after.whole != before.whole


def test_a_new_file_leaves_the_others_valid(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    before = SourceDigests(folder, NAME)
    (folder / "new").mkdir()
    (folder / "new" / "__init__.py").touch()
    (folder / "new" / "kernel.py").write_text("from threadloom.kernels.common import gelu\n")
    after = SourceDigests(folder, NAME)
    assert after.whole != before.whole
    for module in modules(PACKAGE):
        assert after.of_module(f"{NAME}.{module}") == before.of_module(f"{NAME}.{module}")
    assert "common.gelu" in after.files_of("new.kernel")


@pytest.mark.parametrize(
    "source",
    [
        "import threadloom.kernels.common",
        "import threadloom.kernels.common.gelu as g",
        "from threadloom.kernels.common import *",
        "from threadloom.kernels import common",
        "from .common import gelu",
        "from . import common",
        "import_module('threadloom.kernels.common')",
        "def f():\n    import threadloom.kernels",
        "from threadloom.kernels.gone import x",
    ],
)
def test_an_import_of_another_kind_counts_as_one_of_the_whole_package(source: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "common" / "odd.py").write_text(f"{source}\n")
    digests = SourceDigests(folder, NAME)
    assert set(modules(folder)) <= digests.files_of("common.odd")


def test_comments_within_an_import_are_no_names(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    text = "from threadloom.kernels.common import (\n    gelu,  # one, two\n    # three\n    softmax_row as s,\n)\n"
    (folder / "float32" / "odd.py").write_text(text.replace("softmax_row as s", "adamw_update as s"))
    files = SourceDigests(folder, NAME).files_of("float32.odd")
    assert {"common.gelu", "common.adamw"} <= files
    assert "common.dropout" not in files


def test_a_module_outside_of_the_package_depends_on_all_files() -> None:
    assert SOURCES.of_module("tests.kernels.support") == SOURCES.whole
    assert SOURCES.of_module(NAME) == SOURCES.whole
