"""`import threadloom`: public names that are loaded on first use, independent of files in the current directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import threadloom
from tests.stages.support import story
from threadloom.stages.resolve import to_json

HEAVY = (
    "numpy",
    "numba",
    "scipy",
    "msgspec",
    "click",
    "rich",
    "matplotlib",
    "threadloom.pipeline",
    "threadloom.stages",
)
TRAINER = {
    *("Config", "GenerationLimits", "RunMode", "SamplingSettings"),
    *("generate", "generate_text", "load_config", "load_model", "train"),
}


def python(*arguments: str, **environment: str) -> str:
    """Run Python with these arguments in a new process and return its output."""
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_threadloom_loads_nothing_else() -> None:
    script = "import json, sys, threadloom; assert not hasattr(threadloom, '__wrapped__'); "
    loaded = json.loads(python("-c", script + "print(json.dumps(list(sys.modules)))"))
    assert [name for name in HEAVY if name in loaded] == []


def test_help_loads_no_numerical_library() -> None:
    script = "import json, sys, threadloom.stages.cli; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(python("-c", script))
    assert [
        name for name in ("numpy", "numba", "scipy", "msgspec", "rich", "threadloom.pipeline") if name in loaded
    ] == []


def test_the_engine_loads_asyncio_for_coroutines_only() -> None:
    """Each process of a stage imports the engine as it starts."""
    loaded = json.loads(python("-c", "import json, sys, threadloom.pipeline; print(json.dumps(list(sys.modules)))"))
    assert "threadloom.pipeline.run.async_run" in loaded
    assert [name for name in ("asyncio", "rich", "matplotlib") if name in loaded] == []


def test_the_public_names_are_those_of_the_engine_and_of_the_trainer() -> None:
    from threadloom import pipeline

    assert set(threadloom.__all__) == set(pipeline.__all__) | TRAINER
    assert len(set(threadloom.__all__)) == len(threadloom.__all__)


@pytest.mark.parametrize("name", threadloom.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(threadloom, name)
    assert getattr(threadloom, name) == value
    assert name in dir(threadloom)
    if name not in TRAINER:
        assert value is getattr(threadloom.pipeline, name)


def test_a_star_import_gives_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from threadloom import *", names)
    assert set(threadloom.__all__) <= names.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'threadloom' has no attribute 'nosuch'"):
        threadloom.__getattr__("nosuch")
    with pytest.raises(ImportError, match="nosuch"):
        exec("from threadloom import nosuch")


def test_sub_packages_are_attributes() -> None:
    assert python("-c", "import threadloom; print(threadloom.kernels.__name__)") == "threadloom.kernels\n"


@pytest.mark.timeout(300)  # the first run on a machine compiles kernels
def test_a_users_own_modules_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipeline", "stages", "kernels", "config", "data", "models", "memory", "machine", "run", "tools"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the user was imported')\n")
    (tmp_path / "config.json").write_text(to_json(story(tmp_path, "steps=2")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "train" in python("-m", "threadloom", "--help")
    shown = python(
        "-m", "threadloom", "train", "--config", "config.json", "--out", "run", "--sample", "5", "--no-tuned"
    )
    assert "run directory: run" in shown
