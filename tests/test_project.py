"""The project files agree with each other: requirements and lock, make targets and help, the CI script."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import distribution
from tests.test_docs import problem_with

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()


def locked() -> dict[str, str]:
    """Return the lock as distribution → version."""
    pairs = (line.split("==") for line in LOCK if line and not line.startswith("#"))
    return {canonicalize_name(name): number for name, number in pairs}


def requirements(*extras: str) -> list[Requirement]:
    """Return the requirements of the project and of some extras, without references to the project itself."""
    texts = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        texts += PROJECT["project"]["optional-dependencies"][extra]
    return [requirement for text in texts if (requirement := Requirement(text)).name != "threadloom"]


def make(*arguments: str, folder: Path = ROOT) -> str:
    """Run make in a folder that has the Makefile."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "ARGS"}
    answer = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout + answer.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files of a clone that make needs, without the environment."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def set_up(clone: Path) -> None:
    """Install the command of this environment at the path that the targets use."""
    command = clone / ".venv" / "bin" / "threadloom"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!{sys.executable}\nfrom threadloom.stages.cli import main\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    (clone / ".venv" / ".installed").touch()


def test_the_lock_is_plain_and_sorted_and_satisfies_the_requirements() -> None:
    for line in LOCK:
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line
    for requirement in requirements("test", "dev", "docs"):
        number = locked().get(canonicalize_name(requirement.name))
        assert number is not None, f"{requirement} is not in requirements.lock; run `make lock`"
        assert requirement.specifier.contains(number), f"{requirement} and the lock's {number} contradict each other"
    assert "torch" not in locked(), "the peers of the benchmarks are not locked: their builds differ by machine"


def test_every_requirement_has_a_lower_bound() -> None:
    for requirement in requirements("test", "dev", "docs", "bench", "engines"):
        assert any(part.operator in (">=", "==") for part in requirement.specifier), str(requirement)


def test_the_environment_is_the_locked_one() -> None:
    if not os.environ.get("CI"):
        pytest.skip("other versions are allowed locally; CI=true requires those of the lock")
    differ = {}
    for name, number in locked().items():
        try:
            if version(name) != number:
                differ[name] = (version(name), number)
        except PackageNotFoundError:  # only for other platforms or Python versions
            continue
    assert not differ


def test_every_package_is_installed_and_every_configuration_shipped() -> None:
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    for package in packages:
        nested = {path.parent for path in (ROOT / package).rglob("__init__.py")}
        assert nested <= {ROOT / name.replace(".", "/") for name in packages}, f"{package} has packages not installed"
    data = [path for path in (ROOT / "stages").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    cached = {".nbi", ".nbc"}
    shipped = {
        path
        for glob in PROJECT["tool"]["setuptools"]["package-data"]["threadloom.stages"]
        for path in (ROOT / "stages").glob(glob)
    }
    assert {path for path in data if path.suffix not in cached} <= shipped


def test_help_is_the_default_and_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: (\S+)$", text, re.MULTILINE))
    listed = set(re.findall(r"^  make (\S+) +\S", make(), re.MULTILINE))
    assert {
        "setup",
        "train",
        "test",
        "lint",
        "types",
        "soak",
        "bench",
        "convergence",
        "doctor",
        "docs",
        "clean",
    } <= targets
    assert listed == targets


def test_train_sets_up_first_and_runs_the_main_job(clone: Path) -> None:
    plan = make("-n", "train", folder=clone)
    assert plan.index("-m venv") < plan.index("threadloom train")
    assert "threadloom train --config nanogpt-tuned --text stdlib --out runs/stdlib-1" in plan


def test_a_second_train_takes_a_new_folder(clone: Path) -> None:
    for number in (1, 2, 10):
        (clone / "runs" / f"stdlib-{number}").mkdir(parents=True)
    assert "--out runs/stdlib-11 " in make("-n", "train", folder=clone)
    assert "--out runs/mine --steps 7 --set delay=2" in make(
        "-n", "train", "OUT=runs/mine", "STEPS=7", "ARGS=--set delay=2", folder=clone
    )


def test_resume_and_sample_take_the_newest_usable_run(clone: Path) -> None:
    set_up(clone)
    assert "no run in runs/" in make("resume", folder=clone)
    assert "no checkpoint in runs/" in make("sample", folder=clone)
    runs = clone / "runs"
    for age, name in enumerate(("only-begun", "book-1", "stdlib-10", "stdlib-9")):
        (runs / name / "checkpoints" / "step-000010").mkdir(parents=True)
        (runs / name / "config.json").touch()
        os.utime(runs / name / "config.json", (1e9 - age, 1e9 - age))
    (runs / "only-begun" / "checkpoints" / "step-000010").rename(runs / "only-begun" / "checkpoints" / ".step-000010.x")
    (runs / "failed" / "checkpoints").mkdir(parents=True)
    assert "train --out runs/only-begun --resume" in make("-n", "resume", folder=clone)
    assert "sample runs/book-1" in make("-n", "sample", folder=clone)
    for target in ("resume", "sample"):
        assert "runs/stdlib-9 " in make("-n", target, "RUN=runs/stdlib-9", folder=clone)


@pytest.mark.timeout(300)  # the first run compiles kernels
def test_train_resume_and_sample_work(clone: Path) -> None:
    (clone / "book.txt").write_text("the cat sat on a mat and the dog ran to the sea\n" * 40, encoding="utf-8")
    set_up(clone)
    small = ("context=8", "layers=1", "heads=2", "channels=16")
    settings = " ".join(f"--set model.{one}" for one in small) + " --set batch_size=4 --set evaluation.batches=1"
    trained = make("train", "TEXT=book.txt", "STEPS=2", f"ARGS={settings} --sample 0", folder=clone)
    assert "run directory: runs/book-1" in trained, trained
    resumed = make("resume", "STEPS=3", "ARGS=--sample 0", folder=clone)
    assert "after 3 updates" in resumed, resumed
    assert "run directory: runs/book-1" in resumed
    sampled = make("sample", "ARGS=--tokens 5 --prompt the", folder=clone)
    assert "sample runs/book-1" in sampled
    assert "\nthe" in sampled, sampled
    assert "Error" not in sampled


def test_the_commands_of_the_targets_are_accepted(clone: Path) -> None:
    (clone / "runs" / "book-1" / "checkpoints" / "step-000010").mkdir(parents=True)
    (clone / "runs" / "book-1" / "config.json").touch()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*\n(?:\t@.*\n)*\t\$\(BIN\)/threadloom ", makefile, re.MULTILINE)
    assert targets == ["train", "resume", "sample", "doctor"]
    for target in targets:
        for line in make("-n", target, "STEPS=7", folder=clone).splitlines():
            if line.startswith(".venv/bin/threadloom "):
                assert problem_with(["threadloom", *shlex.split(line)[1:]]) is None, line


def test_setup_without_a_usable_python_is_an_error_and_leaves_nothing(clone: Path) -> None:
    said = make("setup", "PYTHON=no-such-python", folder=clone)
    assert "needs Python 3.11 to 3.14" in said
    assert "no-such-python" in said
    assert "Error" in said
    assert not (clone / ".venv").exists()


def test_setup_is_done_once_and_again_after_a_change_of_the_lock(clone: Path) -> None:
    stamp = clone / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "-m venv" not in make("-n", "setup", folder=clone)
    later = stamp.stat().st_mtime + 10
    os.utime(clone / "requirements.lock", (later, later))
    assert "-m venv" in make("-n", "setup", folder=clone)


def test_the_ci_script_can_run_and_ends_with_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    lines = script.read_text(encoding="utf-8").split("\n")
    wanted = ["make setup", "make lint", "make types", "make docs", "make test"]
    assert [line for line in lines if line.startswith("make")] == wanted
    assert "set -euo pipefail" in lines


LEAKS = """
import subprocess, sys, threading

def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten").start()

def test_process():
    subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

def test_clean():
    thread = threading.Thread(target=print)
    thread.start()
    thread.join()
"""


def test_a_test_that_leaves_a_thread_or_a_process_fails(tmp_path: Path) -> None:
    rules = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    (tmp_path / "conftest.py").write_text(rules.replace("GRACE = 8.0", "GRACE = 0.1"), encoding="utf-8")
    (tmp_path / "test_leaks.py").write_text(LEAKS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    # The thread never ends: the call returns only because of pytest_unconfigure.
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # conftest.py imports tests.distribution
    answer = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode != 0
    assert "0.1 s after its end: threads ['forgotten'], child processes []" in answer.stdout
    assert "threads [], child processes ['" in answer.stdout
    assert "3 passed, 2 errors" in answer.stdout


def test_the_distribution_of_the_tests_names_existing_files() -> None:
    assert [path for path in distribution.ORDER if not (ROOT / path).exists()] == []
    units = {distribution.unit_of(f"{path}::test_x") for path in distribution.ORDER if path.endswith(".py")}
    assert units == set(distribution.ORDER[2:])
    assert distribution.unit_of("tests/kernels/float32/test_gelu.py::test_x[1]") == "tests/kernels"
