"""Tests of the live view, with constructed statistics and a clock advanced by the test."""

import re
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from rich.console import Console

from threadloom.pipeline import Graph
from threadloom.pipeline.draw.live_view import LINE_INTERVAL, LIVE_INTERVAL, WINDOW, GraphView, LiveView, status_line
from threadloom.pipeline.observe.histogram import Distribution, Histogram
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import ChannelStatistics, RunStatistics, StageStatistics

pytestmark = pytest.mark.timeout(60)


def tasks(nanoseconds: int) -> Distribution:
    histogram = Histogram()
    histogram.add(nanoseconds)
    return Distribution.of([histogram])


def state(elapsed: float = 10.0, items: int = 1000) -> RunStatistics:
    """Return the statistics of a run whose second stage is always busy."""
    part = elapsed / 10
    full = ChannelStatistics(4, 4, 3.9, 4, items, 8.9 * part, 0.1)
    empty = ChannelStatistics(2, 0, 1.0, 1, items, 0.0, 9.0 * part)
    read = StageStatistics("read", 1, 0, items, part, 0.0, 9 * part, None, tasks(900_000), kind=NodeKind.SOURCE)
    decode = StageStatistics("decode", 2, items, items, 19.0 * part, 0.8 * part, 0.2 * part, full, tasks(12_000_000))
    show = StageStatistics("show", 1, items, items, part, 9 * part, 0.0, empty, tasks(50_000), kind=NodeKind.SINK)
    stages = (read, replace(decode, after=("read",)), replace(show, after=("decode",)))
    return RunStatistics("words", elapsed, stages)


def drawn(view: GraphView, width: int = 120, encoding: str = "utf-8") -> list[str]:
    raw = BytesIO()
    output = TextIOWrapper(raw, encoding=encoding, errors="replace")
    Console(file=output, width=width, force_terminal=False).print(view)
    output.flush()
    return raw.getvalue().decode(encoding).splitlines()


def test_one_line_per_stage_and_the_bottleneck() -> None:
    lines = drawn(GraphView(state()))
    assert lines[0] == "words  0:10"
    assert lines[1].split() == [
        *("█", "busy", "▒", "blocked", "░", "waiting", "busy", "rate", "input", "queue", "p50", "p99")
    ]
    read, decode, show = (line.split() for line in lines[2:5])
    assert (read[0], set(read[1]), read[2:]) == ("read", {"█", "▒"}, ["10%", "100/s", "900", "µs", "900", "µs"])
    assert decode[:2] == ["decode", "x2"]
    assert decode[3:] == ["95%", "100/s", "▮▮▮▮", "4/4", "12", "ms", "12", "ms"]
    assert show[2:6] == ["10%", "100/s", "▯▯", "0/2"]
    assert lines[5].startswith(
        "decode is the bottleneck: its 2 workers are busy 95% of the time, and a call takes 12 ms"
    )
    assert "more than 2 workers" in " ".join(lines[6:])


def test_shares_and_rates_are_recent() -> None:
    early, late = state(10.0, 1000), state(12.0, 1500)
    decode = next(line for line in drawn(GraphView(late, early)) if line.startswith("decode"))
    assert "250/s" in decode
    assert "0:12" in drawn(GraphView(late, early))[0]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_columns_are_aligned_at_any_width(width: int) -> None:
    lines = drawn(GraphView(state()), width)
    assert max(map(len, lines)) <= width
    stages = lines[2:5]
    if width >= 80:
        assert {line.index("/s") for line in stages} == {lines[1].index("rate") + 2}
        assert {line.index("%") for line in stages} == {lines[1].index("rate") - 8}


def test_ascii_output_for_ascii_terminals() -> None:
    lines = drawn(GraphView(state()), encoding="ascii")
    assert [line for line in lines if "?" in line.replace("?s", "us")] == []  # except the micro sign
    assert any(line.startswith("->") for line in lines)


def test_names_cannot_control_the_terminal() -> None:
    hostile = replace(state(), graph="\x1b[2Jwords")
    hostile = replace(hostile, stages=tuple(replace(stage, name=f"\x1b]0;{stage.name}\n") for stage in hostile.stages))
    text = "".join(drawn(GraphView(hostile))) + status_line(hostile)
    assert "\x1b" not in text


def test_one_line_for_logs() -> None:
    assert status_line(state()).startswith(
        "words 0:10: read 100/s 10% busy, decode 4/4 100/s 95% busy, show 0/2 100/s 10% busy; decode is the bottleneck"
    )


class Moving:
    """A clock, and the statistics of a run at its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[float] = []

    def clock(self) -> float:
        return self.now

    def statistics(self) -> RunStatistics:
        self.asked.append(self.now)
        return state(self.now + 1.0, int(100 * self.now) + 1)


def test_one_line_every_few_seconds_without_a_terminal() -> None:
    moving, lines = Moving(), list[str]()
    console = Console(file=StringIO(), force_terminal=False)
    with LiveView(moving.statistics, console, moving.clock, lines.append) as view:
        assert not view.is_live
        for _ in range(12):
            view.update()
            moving.now += LINE_INTERVAL / 5
    assert moving.asked == [0.0, 5.0, 10.0, 12.0]  # the last at the end, for the whole run
    assert len(lines) == 4
    assert "decode 4/4 100/s" in lines[2]


def test_lines_go_to_the_console_by_default() -> None:
    output = StringIO()
    with LiveView(state, Console(file=output, width=30, force_terminal=False)):
        pass
    assert output.getvalue() == status_line(state()) + "\n"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_updated_four_times_per_second() -> None:
    moving, output = Moving(), Terminal()
    console = Console(file=output, width=100, height=30, force_terminal=True, _environ={"TERM": "xterm-256color"})
    with LiveView(moving.statistics, console, moving.clock) as view:
        assert view.is_live
        assert list(view.over(range(40 * WINDOW + 1))) == list(range(40 * WINDOW + 1))
        drawings = len(moving.asked)
        for _ in range(WINDOW):
            moving.now += LIVE_INTERVAL
            view.update()
    assert (drawings, len(moving.asked)) == (1, 1 + WINDOW + 1)
    assert "decode is the bottleneck" in output.getvalue()


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_file_gets_lines_even_if_colour_is_forced(variable: str) -> None:
    moving, output = Moving(), StringIO()
    environment = {"TERM": "xterm-256color", "TTY_COMPATIBLE": "1", variable: "1"}
    console = Console(file=output, width=200, _environ=environment)
    assert console.is_terminal
    with LiveView(moving.statistics, console, moving.clock) as view:
        assert not view.is_live
        view.update()
    assert re.findall(r"\x1b\[[^m]*[A-Za-ln-z]", output.getvalue()) == [], "cursor movements"


class Gone(Terminal):
    """A terminal that is closed after the first `kept` characters."""

    kept = 0

    def write(self, text: str) -> int:
        if self.tell() >= self.kept:
            raise OSError("the terminal is gone")
        return super().write(text)


@pytest.mark.parametrize("kept", [0, 40])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_outlives_its_terminal(terminal: bool, kept: int) -> None:
    moving, output = Moving(), Gone()
    output.kept = kept
    console = Console(file=output, width=30, force_terminal=terminal, _environ={"TERM": "xterm"})
    with LiveView(moving.statistics, console, moving.clock) as view:
        assert view.is_live is terminal
        for _ in range(5):
            moving.now += LINE_INTERVAL
            view.update()
    assert len(moving.asked) < 5, "nothing is computed for a view that nobody sees"
    with pytest.raises(ZeroDivisionError), LiveView(state, console):
        raise ZeroDivisionError


def test_a_run_is_viewed_from_the_callers_thread() -> None:
    graph = Graph("viewed")
    graph.sink("out", after=graph.stage("work", abs, after=graph.source("draw", range(50))))
    lines: list[str] = []
    with graph.start() as run, LiveView(run.statistics, Console(file=StringIO()), report=lines.append) as view:
        assert sum(view.over(run)) == sum(range(50))
    assert lines[-1].startswith("viewed 0:0")
