"""Options of `start` as options of a graph: they hold for each run, also for that of a `for` statement."""

import logging
import threading

import pytest

from threadloom.pipeline import Graph, GraphError, OnStall, StageFailure, Stalled, Watchdog

pytestmark = pytest.mark.timeout(60)


def test_break_logs_a_thread_that_is_left_after_the_grace_of_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    release, entered = threading.Event(), threading.Event()

    def never_returns(item: int) -> int:
        if item:
            entered.set()
            release.wait(30)
        return item

    graph = Graph("left", grace=0.05)
    graph.sink("out", after=graph.stage("forever", never_returns, after=graph.source("draw", range(2))))
    try:
        with caplog.at_level(logging.WARNING, "threadloom.pipeline.run"):
            for _ in graph:
                assert entered.wait(30)
                break
        assert "the loop over graph 'left' has been left: 1 thread(s) did not end within 0.05 s" in caplog.text
        assert "thread 'left.forever-0' is at" in caplog.text
    finally:
        release.set()


def test_break_logs_nothing_if_all_threads_end(caplog: pytest.LogCaptureFixture) -> None:
    graph = Graph("ended", grace=30)
    graph.sink("out", after=graph.stage("pass", abs, after=graph.source("draw", range(9))))
    for _ in graph:
        break
    assert not caplog.records


def test_a_for_statement_has_the_watchdog_of_the_graph() -> None:
    release = threading.Event()

    def wait(item: int) -> None:
        assert release.wait(30)

    def fail(report: object) -> None:
        release.set()
        raise Stalled(str(report))

    graph = Graph("stalled", watchdog=Watchdog(after=0.02, act=fail))
    graph.sink("out", after=graph.stage("wait", wait, after=graph.source("draw", [1])))
    with pytest.raises(StageFailure, match="stage 'wait'"):
        list(graph)


def test_options_of_start_have_precedence() -> None:
    graph = Graph("both", grace=7.0, on_failure="drain")
    graph.sink("out", after=graph.source("draw", range(3)))
    with graph.start() as run:
        assert run._grace == 7
        assert list(run) == [0, 1, 2]
    with graph.start(grace=3, watchdog=None) as run:
        assert run._grace == 3
        assert list(run) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gracious": 1}, "graph 'bad' has no option 'gracious': did you mean 'grace'"),
        ({"grace": -1}, "grace to be a number of seconds, 0 or more, got -1"),
        ({"grace": True}, "grace to be a number of seconds, 0 or more, got True"),
        ({"grace": None}, "grace to be a number of seconds, 0 or more, got None"),
        ({"watchdog": OnStall.FAIL}, "watchdog to be a Watchdog, such as"),
        ({"on_failure": "later"}, "on_failure to be one of stop, drain, got 'later'"),
    ],
)
def test_mistyped_options_are_refused_as_the_graph_is_created(options: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph("bad", **options)  # type: ignore[arg-type]
