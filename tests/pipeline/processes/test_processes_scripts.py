"""Process stages in scripts: functions of the script, a user's files with names of this project, start methods."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[3]

RUN = """
def start():
    graph = Graph("script")
    graph.sink("out", after=graph.stage("add", on_processes(add), after=graph.source("draw", [1, 2])))
    print(list(graph))
"""
SCRIPT = (
    """
import multiprocessing
import sys
from threadloom.pipeline import Graph, on_processes
OFFSET = 4
def add(item):
    return item + OFFSET
"""
    + RUN
)
GUARD = "\nif __name__ == '__main__':\n    start()\n"


def run(*arguments: str, cwd: Path) -> str:
    """Run Python with these arguments and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("arguments", [["script.py"], ["-P", "script.py"], ["-m", "script"]], ids=" ".join)
def test_files_with_names_of_this_project_are_not_imported(tmp_path: Path, arguments: list[str]) -> None:
    for name in ("pipeline", "stages", "kernels", "threads"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a file of the user was imported')\n")
    (tmp_path / "script.py").write_text(SCRIPT + GUARD)
    assert run(*arguments, cwd=tmp_path) == "[5, 6]\n"


def test_the_function_may_be_in_a_users_pipeline_py(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("def add(item):\n    return item + 7\n")
    imports = "from pipeline import add\nfrom threadloom.pipeline import Graph, on_processes\n"
    (tmp_path / "script.py").write_text(imports + RUN + GUARD)
    assert run("script.py", cwd=tmp_path) == "[8, 9]\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_run_may_be_started_in_a_child_process(tmp_path: Path, method: str) -> None:
    guard = f"""
if __name__ == "__main__":
    child = multiprocessing.get_context({method!r}).Process(target=start)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
    (tmp_path / "script.py").write_text(SCRIPT + guard)
    assert run("script.py", cwd=tmp_path) == "[5, 6]\n"
