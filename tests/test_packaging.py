"""The distribution: one top-level name, every module in it once, and no interference from a user's own files."""

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "pipeline", "stages")
OURS = ("pipeline", "stages", "kernels", "config", "data")
"""Names that a user's own files may have."""


def run(*command: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with only `path` on PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the installed setuptools from the files that git tracks or would track."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if name.startswith((*PACKAGES, "threadloom")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                target.symlink_to((ROOT / name).readlink())
            elif (ROOT / name).exists():
                target.write_bytes((ROOT / name).read_bytes())
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    built = run(sys.executable, "-c", code, str(folder), cwd=source)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder, as `pip install --target` lays them."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_nothing_but_threadloom_is_installed(installed: Path) -> None:
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["threadloom"]


def test_the_wheel_has_every_module_and_its_data(installed: Path) -> None:
    there = {str(path.relative_to(installed / "threadloom")) for path in installed.rglob("*") if path.is_file()
             if path.is_relative_to(installed / "threadloom")}  # fmt: skip
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".json") and "__pycache__" not in path.parts
    }
    assert there == wanted | {"__init__.py", "__main__.py", "py.typed"}


def test_a_users_own_files_change_nothing(installed: Path, tmp_path: Path) -> None:
    for name in OURS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')\n", encoding="utf-8")
    both = f"{tmp_path}{os.pathsep}{installed}"
    answer = run(sys.executable, "-m", "threadloom", "--help", cwd=tmp_path, path=Path(both))
    assert answer.returncode == 0, answer.stderr
    assert "Usage: " in answer.stdout
    code = "import threadloom; print(threadloom.Graph.__module__)"
    answer = run(sys.executable, "-c", code, cwd=tmp_path, path=Path(both))
    assert answer.stdout.startswith("threadloom.pipeline"), answer.stderr


IMPORT_ALL = """
import importlib, json, pkgutil, sys
from pathlib import Path
import threadloom
for module in pkgutil.walk_packages(threadloom.__path__, "threadloom."):
    if module.name != "threadloom.__main__":
        importlib.import_module(module.name)
found = {}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None):
        found.setdefault(str(Path(module.__file__).resolve()), []).append(name)
print(json.dumps(found))
"""


def test_no_module_has_two_names() -> None:
    answer = run(sys.executable, "-c", IMPORT_ALL, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    names = json.loads(answer.stdout.splitlines()[-1])
    ours = {path: found for path, found in names.items() if Path(path).is_relative_to(ROOT / "threadloom")
            or any(Path(path).is_relative_to(ROOT / package) for package in PACKAGES)}  # fmt: skip
    assert {path: found for path, found in ours.items() if len(found) > 1} == {}
    assert all(found[0].startswith("threadloom") for found in ours.values())
    files = {str(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert files <= set(ours), "a module that nothing can import"


def test_nobody_imports_a_folder_under_its_short_name() -> None:
    wrong = []
    for folder in (*PACKAGES, "threadloom", "examples", "benchmarks", "tests", "docs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                wrong += [f"{path}:{module}" for module in modules if module.partition(".")[0] in PACKAGES]
    assert wrong == []
