"""The progress of a run, with constructed statistics: its numbers, its lines, its bar; then a real run."""

import re
import sys
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from threadloom.pipeline import Graph, Progress, ProgressBar, RunStatistics, StageStatistics, progress_of
from threadloom.pipeline.observe.histogram import Distribution
from threadloom.pipeline.observe.progress import BAR_INTERVAL, LINE_INTERVAL, progress_text
from threadloom.pipeline.observe.stage import NodeKind

pytestmark = pytest.mark.timeout(60)


def stage(
    name: str, done: int, expected: int | None, after: tuple[str, ...] = (), kind: NodeKind = NodeKind.SINK
) -> StageStatistics:
    tasks = Distribution(count=done)
    return StageStatistics(name, 1, done, done, 0.0, 0.0, 0.0, None, tasks, kind=kind, after=after, expected=expected)


def state(done: int, total: int | None, elapsed: float = 10.0, skipped: int = 0) -> RunStatistics:
    source = replace(stage("read", done + 3, total, kind=NodeKind.SOURCE), items_in=0, skipped=skipped)
    return RunStatistics("words", elapsed, (source, stage("out", done, total, ("read",))))


def test_the_progress_is_that_of_the_end_of_the_graph() -> None:
    assert progress_of(state(20, 100, skipped=2)) == Progress(20, 100, 2)
    assert progress_of(state(20, None)) == Progress(20, None, 0)
    assert progress_of(state(120, 100)) == Progress(120, 120, 0), "an estimate that was too low"
    assert progress_of(RunStatistics("empty", 0.0, ())) == Progress(0, None, 0)


def test_of_several_ends_the_one_furthest_behind_counts() -> None:
    read = stage("read", 100, 100, kind=NodeKind.SOURCE)
    ends = (stage("fast", 90, 100, ("read",)), stage("slow", 2, 10, ("read",)), stage("other", 1, None, ("read",)))
    assert progress_of(RunStatistics("ends", 1.0, (read, *ends))) == Progress(2, 10, 0)


@pytest.mark.parametrize(
    ("progress", "elapsed", "rate", "final", "text"),
    [
        (Progress(120, 1000, 0), 4.0, 40.0, False, "120 of 1,000 (12%), 40.0/s, 0:22 left"),
        (Progress(120, None, 3), 4.0, 40.0, False, "120, 40.0/s, 3 skipped, 0:04"),
        (Progress(0, 1000, 0), 2.0, 0.0, False, "0 of 1,000 (0%), 0/s, 0:02"),
        (Progress(1000, 1000, 0), 65.0, 15.4, True, "1,000 of 1,000, 15.4/s, 1:05"),
        (Progress(0, 0, 0), 0.0, 0.0, True, "0 of 0, 0/s, 0:00"),
        (Progress(999, 1000, 0), 4.0, 1000.0, False, "999 of 1,000 (99%), 1,000/s, 0:00 left"),
    ],
)
def test_the_text(progress: Progress, elapsed: float, rate: float, final: bool, text: str) -> None:
    assert progress_text(progress, elapsed, rate, final=final) == text


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def terminal(output: StringIO) -> Console:
    return Console(file=output, width=100, force_terminal=True, _environ={"TERM": "xterm-256color"})


def test_lines_without_a_terminal() -> None:
    states, lines = [state(0, 100, 0.0), state(20, 100, 5.0), state(60, 100, 10.0), state(100, 100, 12.5)], list[str]()
    bar = ProgressBar(Console(file=StringIO()), lines.append)
    assert (bar.is_live, bar.interval) == (False, LINE_INTERVAL)
    bar.begin(lambda: states[0])
    for _ in range(2):
        del states[0]
        bar.update()
    del states[0]
    bar.end(lambda: states[0], complete=True)
    assert lines == [
        "words: 20 of 100 (20%), 4.00/s, 0:20 left",
        "words: 60 of 100 (60%), 6.00/s, 0:07 left",
        "words: 100 of 100, 8.00/s, 0:12",
    ]


def test_a_run_that_is_stopped_says_so_and_one_that_ends_early_is_complete() -> None:
    stopped, ended = "words: 60 of 100, 6.00/s, 0:10, stopped", "words: 60 of 60, 6.00/s, 0:10"
    for complete, expected in ((False, stopped), (True, ended)):
        lines: list[str] = []
        bar = ProgressBar(Console(file=StringIO()), lines.append)
        bar.begin(lambda: state(60, 100))
        bar.end(lambda: state(60, 100), complete=complete)
        assert lines == [expected]


def test_a_bar_on_a_terminal() -> None:
    output = Terminal()
    bar = ProgressBar(terminal(output))
    assert (bar.is_live, bar.interval) == (True, BAR_INTERVAL)
    bar.begin(lambda: replace(state(60, 100), graph="[red]words\x1b[2J"))
    bar.update()
    bar.end(lambda: state(60, 100), complete=True)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output.getvalue())
    assert "[red]words [2J" in text, "neither markup nor a control sequence"
    assert "60 of 100 (60%)" in text
    assert "━" in text
    assert "60 of 60" in text


def test_an_unknown_total_has_a_bar_too() -> None:
    output = Terminal()
    bar = ProgressBar(terminal(output))
    bar.begin(lambda: state(1234, None))
    bar.update()
    bar.end(lambda: state(1234, None), complete=False)
    assert "1,234" in output.getvalue()
    assert "stopped" in output.getvalue()


def test_output_that_goes_to_a_file_is_not_diverted(capfd: pytest.CaptureFixture[str]) -> None:
    output = Terminal()
    bar = ProgressBar(terminal(output))
    bar.begin(lambda: state(1, 2))
    sys.stdout.write("a result\n")
    bar.end(lambda: state(1, 2), complete=True)
    assert capfd.readouterr().out == "a result\n"
    assert "a result" not in output.getvalue()


class Gone(Terminal):
    def write(self, text: str) -> int:
        raise OSError("the terminal is gone")


@pytest.mark.parametrize("live", [True, False])
def test_a_run_outlives_its_terminal(live: bool) -> None:
    plain = Console(file=Gone(), force_terminal=False, _environ={"TERM": "dumb"})
    bar = ProgressBar(terminal(Gone()) if live else plain)
    for _ in range(2):
        bar.begin(lambda: state(1, 2))
        bar.update()
        bar.end(lambda: state(1, 2), complete=True)


def test_one_bar_follows_one_run_at_a_time() -> None:
    bar = ProgressBar(Console(file=StringIO()))
    bar.begin(lambda: state(1, 2))
    with pytest.raises(ValueError, match="create one for each run"):
        bar.begin(lambda: state(1, 2))


def test_a_run_shows_its_progress_by_one_argument(capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph("keys")
    graph.stage("work", abs, after=graph.source("numbers", range(50)))
    graph.run(progress=True)
    captured = capsys.readouterr()
    assert re.fullmatch(r"keys: 50 of 50, [\d,.]+/s, 0:00\n", captured.err)
    assert captured.out == ""


def test_a_loop_over_a_graph_shows_its_progress_too(capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph("keys", progress=True)
    graph.sink("out", after=graph.source("numbers", range(5)))
    assert list(graph) == list(range(5))
    assert capsys.readouterr().err.startswith("keys: 5 of 5, ")


def test_a_failing_run_shows_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph("keys")
    graph.sink("out", after=graph.stage("divide", lambda n: 1 // (3 - n), after=graph.source("numbers", range(50))))
    with pytest.raises(Exception, match="divide"), graph.start(progress=True) as run:
        list(run)
    assert re.fullmatch(r"keys: \d of 50, [\d,.]+/s, 0:00, stopped\n", capsys.readouterr().err)
