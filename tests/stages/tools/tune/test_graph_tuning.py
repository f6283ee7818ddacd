"""`threadloom tune --pipeline`: loading of graphs, the printed result, and errors."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.pipeline.tuning.simulated import SimulatedLine, Step
from tests.stages.support import command
from threadloom.pipeline import Graph
from threadloom.pipeline.tuning import GraphTrials, GraphTuning, search_sizes
from threadloom.stages.config import InputError
from threadloom.stages.tools.tune.graph_loading import load_graph
from threadloom.stages.tools.tune.graph_table import graph_conclusions, newly_parallel, sizes_table, values_to_write
from threadloom.stages.tools.tune.graph_tuning import run_graph_tuning

PROGRAM = """
import threading
from itertools import count
from threadloom.pipeline import Graph

def moment(item):
    threading.Event().wait(0.002)
    return item

def build() -> Graph:
    graph = Graph("words")
    read = graph.source("read", count)
    graph.sink("out", after=graph.stage("decode", moment, after=read))
    return graph

def broken() -> Graph:
    graph = Graph("broken")
    graph.sink("out", after=graph.stage("parse", lambda item: 1 // (item - 2), after=graph.source("read", count)))
    return graph

ready = build()
number = 3
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of a user's, in the current directory."""
    path = tmp_path / "my_pipeline_for_tuning.py"
    path.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    sys.modules.pop(path.stem, None)


def test_graphs_are_named_by_module_or_file(program: Path) -> None:
    assert isinstance(load_graph("my_pipeline_for_tuning:ready"), Graph)
    assert callable(load_graph("my_pipeline_for_tuning:build"))
    assert isinstance(load_graph(f"{program}:ready"), Graph)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("build", "expected a place such as module:graph or path/to/file.py:graph"),
        ("my_pipeline_for_tuning:", "expected a place such as"),
        ("my_pipeline_for_tuning:biuld", "Hint: it defines build, broken, ready"),
        ("my_pipeline_for_tuning:number", "got number = 3"),
        ("no_such_module:build", "there is no module 'no_such_module'"),
        ("no_such_file.py:build", "no_such_file.py, which does not exist"),
        ("with_an_error.py:build", "ZeroDivisionError: division by zero"),
        ("with_an_import.py:build", "No module named 'no_such_library'"),
    ],
)
def test_wrong_places_are_explained(program: Path, place: str, message: str) -> None:
    (program.parent / "with_an_error.py").write_text("1 / 0", encoding="utf-8")
    (program.parent / "with_an_import.py").write_text("import no_such_library", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_graph(place)
    assert message in str(caught.value)


@pytest.mark.usefixtures("program")
def test_a_graph_is_tuned_and_the_values_are_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = SimulatedLine([Step("read", 1e-3), Step("decode", 2e-3), Step("out", 1e-4)])

    def simulated(trials: GraphTrials, budget: float, on_progress: object, on_tried: object) -> GraphTuning:
        assert trials.declared == line.declared
        return search_sizes(line.declared, trials.freedoms, line, 500.0)

    monkeypatch.setattr("threadloom.stages.tools.tune.graph_tuning.run_trials", simulated)
    stream, picture = io.StringIO(), tmp_path / "tried.png"
    found = run_graph_tuning(
        "my_pipeline_for_tuning:build", 3.0, picture=picture, console=Console(file=stream, width=140)
    )
    shown = stream.getvalue()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in shown
    workers = found.chosen["decode"].workers
    assert workers > 1
    written = f'graph.stage("decode", ..., workers={workers}, capacity={found.chosen["decode"].capacity}, ordered=True)'
    assert written in shown
    assert "decode workers=2" in shown
    assert "decode is the bottleneck: its 1 worker is busy" in shown
    assert "several threads at once" in shown


@pytest.mark.usefixtures("program")
def test_errors_are_one_sentence() -> None:
    command("tune", "--pipeline", "my_pipeline_for_tuning:broken", "--budget", "1").refuses(
        "graph 'broken' fails as declared: stage 'parse' raised ZeroDivisionError", "correct its function"
    )
    command("tune", "--pipeline", "my_pipeline_for_tuning:build", "--fixed", "parse", "--budget", "1").refuses(
        "has no stage 'parse'"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--any-order",),
        ("--fixed", "a"),
        ("--pipeline", "a:b", "--config", "small"),
        ("--pipeline", "a:b", "--steps", "3"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(arguments: tuple[str, ...]) -> None:
    assert command("tune", *arguments).status == 2


def result() -> tuple[SimulatedLine, GraphTuning]:
    line = SimulatedLine(
        [Step("read", 2e-3), Step("decode", 7e-3), Step("store", 1e-3), Step("out", 1e-4)],
    )
    return line, search_sizes(line.declared, line.freedoms, line, 500.0)


def test_table_and_conclusions_are_functions_of_the_result() -> None:
    line, found = result()
    assert sizes_table(found.tried, line.freedoms).row_count == len(found.tried)
    sentences = graph_conclusions(found, line.freedoms)
    accepted = [row for row in found.tried if row.accepted]
    assert accepted
    assert sum("because before that" in sentence for sentence in sentences) == len(accepted)
    assert any(sentence.startswith("Now read is the bottleneck") for sentence in sentences)
    (written,) = values_to_write(found, line.freedoms)
    assert written.startswith(f'graph.stage("decode", ..., workers={found.chosen["decode"].workers}, capacity=2)')
    assert written.endswith("# instead of workers=1, capacity=2")
    assert newly_parallel(found, line.freedoms) == ["decode"]


def test_an_interrupt_prints_what_was_measured(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, found = result()

    def interrupted(trials: object, budget: float, on_progress: object, on_tried: object) -> GraphTuning:
        on_tried(found.tried[0])  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr("threadloom.stages.tools.tune.graph_tuning.run_trials", interrupted)
    monkeypatch.setattr("threadloom.pipeline.tuning.trials.freedoms_of", lambda *_: line.freedoms)
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_graph_tuning(f"{program}:build", 1.0, console=Console(file=stream, width=140))
    assert "decode workers=2" in stream.getvalue()
    assert "nothing was chosen" in stream.getvalue()
