"""`for item in graph` and `for item in sink`: however the loop is left, all threads end before the next statement."""

import signal
import threading
from collections.abc import Iterator

import pytest

from threadloom.pipeline import Graph, GraphError, Sink, StageFailure

pytestmark = pytest.mark.timeout(60)


class Boom(Exception):
    pass


def endless() -> Iterator[int]:
    item = 0
    while True:
        yield item
        item += 1


def counting() -> tuple[Graph, Sink[int]]:
    graph = Graph("iterated")
    node = graph.stage("work", int, after=graph.source("draw", endless), workers=2, ordered=True)
    return graph, graph.sink("out", after=node)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("iterated")]


def test_break_joins_the_threads() -> None:
    graph, sink = counting()
    for each in (graph, sink, graph):
        for item in each:
            if item == 5:
                break
        assert threads() == []


def leave_by_return(graph: Graph) -> int:
    for item in graph:
        if item == 5:
            return int(item)
    return -1


def test_return_joins_the_threads() -> None:
    assert leave_by_return(counting()[0]) == 5
    assert threads() == []


@pytest.mark.parametrize("raised", [Boom, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_body_joins_the_threads_while_its_traceback_is_held(raised: type[BaseException]) -> None:
    graph, _ = counting()
    with pytest.raises(raised) as caught:
        for item in graph:
            if item == 5:
                raise raised
    assert threads() == []
    assert caught.value.__traceback__ is not None


def test_ctrl_c_at_many_points() -> None:
    for at in range(0, 200, 7):

        def work(item: int, at: int = at) -> int:
            if item == at:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return item

        graph = Graph("iterated")
        graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", endless), workers=2))
        with pytest.raises(KeyboardInterrupt):
            for _ in graph:
                pass
        assert threads() == []


def test_a_failure_is_raised_in_the_loop() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise Boom
        return item

    graph = Graph("iterated")
    graph.sink("out", after=graph.stage("work", work, after=graph.source("draw", endless)))
    with pytest.raises(StageFailure, match="'work'"):
        for _ in graph:
            pass
    assert threads() == []


def test_an_iterator_kept_in_a_variable_has_to_be_closed() -> None:
    graph, sink = counting()
    iterator = graph.deliver(sink)
    assert next(iterator) == 0
    assert threads()
    iterator.close()
    assert threads() == []


def test_iteration_needs_one_sink_and_run_none() -> None:
    graph = Graph("g")
    numbers = graph.source("numbers", [1])
    graph.stage("leaf", int, after=numbers)
    with pytest.raises(GraphError, match=r"with 0 sinks, expected 1: use run\(\)"):
        iter(graph)
    graph.run()
    one = graph.sink("one", after=numbers)
    with pytest.raises(GraphError, match=r"run\(\) does not iterate the sinks \['one'\] of graph 'g'"):
        graph.run()
    graph.sink("two", after=numbers)
    with pytest.raises(
        GraphError, match=r"with 2 sinks, expected 1: .* run.items\(sink\) for each of \['one', 'two'\]"
    ):
        iter(graph)
    with pytest.raises(
        GraphError, match=r"cannot iterate only sink 'one' of graph 'g', which has the sinks \['two'\] too"
    ):
        next(iter(one))
