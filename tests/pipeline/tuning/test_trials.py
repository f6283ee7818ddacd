"""Trials of real graphs: endless, short, failing, without sinks, with several; and a whole tuning."""

import threading
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from threadloom.pipeline import Graph, RunStatistics
from threadloom.pipeline.tuning import proposals, run_trials, trials as trials_module, tune, tune_graph
from threadloom.pipeline.tuning.sizes import GraphSizes
from threadloom.pipeline.tuning.trials import GraphTrial, GraphTrials, GraphTuningError, Interval

SECONDS = 0.05
WAITING = 4
"""Items between the call and its count: two in the channel, one on its way in and one on its way out."""


@pytest.fixture(autouse=True)
def half_a_minute_for_the_first_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no trial fail because the machine is loaded."""
    monkeypatch.setattr(trials_module, "FIRST_ITEM", 30 / SECONDS)


def wait_a_moment(item: int) -> int:
    """Take two milliseconds without a core."""
    threading.Event().wait(0.002)
    return item


def assert_at_most_500_per_second(trial: GraphTrial) -> None:
    """Check a score of calls of 2 ms: on a loaded machine, items that wait in a channel are counted close together."""
    assert trial.score > 0
    assert (trial.items - WAITING) / 500 <= trial.items / trial.score


def line(items: Callable[[], Iterator[int]], fn: Callable[[int], object] = wait_a_moment) -> Graph:
    graph = Graph("line")
    work = graph.stage("work", fn, after=graph.source("read", items))
    graph.sink("out", after=work)
    return graph


def test_an_endless_graph_is_measured_for_a_moment() -> None:
    trials = GraphTrials(lambda: line(count), SECONDS)
    trial = trials(trials.declared)
    assert_at_most_500_per_second(trial)
    assert trial.items >= 1
    work = trial.statistics["work"]
    assert work.items_out < 100  # those of the measured interval
    assert work.busy > 0.002


def test_a_short_graph_is_run_from_start_to_end_several_times() -> None:
    runs: list[int] = []

    def build() -> Graph:
        runs.append(1)
        return line(lambda: iter(range(5)), int)

    ticks = count()  # a clock that advances by a millisecond whenever it is read
    trials = GraphTrials(build, 10 * SECONDS, clock=lambda: next(ticks) / 1000)
    assert trials(trials.declared).items == 5
    trial = trials(trials.declared)
    assert trial.items == 5 * (len(runs) - 1)
    assert len(runs) > 3


def test_a_graph_without_sinks_is_counted_at_its_last_stages() -> None:
    def build() -> Graph:
        graph = Graph("effects")
        read = graph.source("read", count)
        graph.stage("store", wait_a_moment, after=read)
        return graph

    trials = GraphTrials(build, SECONDS)
    assert trials.counted == ["store"]
    assert_at_most_500_per_second(trials(trials.declared))


def test_all_sinks_are_iterated_at_once() -> None:
    def build() -> Graph:
        graph = Graph("two")
        read = graph.source("read", count)
        for name in ("first", "second"):
            graph.sink(name, after=graph.stage(f"{name} work", wait_a_moment, after=read))
        return graph

    trials = GraphTrials(build, SECONDS)
    assert trials.counted == ["first", "second"]
    assert trials(trials.declared).items >= 1


def test_a_failure_of_the_declared_graph_names_stage_item_and_error() -> None:
    trials = GraphTrials(lambda: line(lambda: iter(range(100)), lambda item: 1 // (item - 3)), SECONDS)
    with pytest.raises(GraphTuningError, match=r"fails as declared: stage 'work' raised ZeroDivisionError.*on 3"):
        trials(trials.declared)


def test_a_failure_of_other_sizes_is_a_result() -> None:
    barrier = threading.Lock()

    def alone(item: int) -> int:
        if not barrier.acquire(blocking=False):
            raise RuntimeError("called by two threads at once")
        try:
            return wait_a_moment(item)
        finally:
            barrier.release()

    trials = GraphTrials(lambda: line(count, alone), SECONDS)
    assert trials(trials.declared).score > 0
    failed = trials(trials.declared.changed("work", workers=4))
    assert failed.score == 0
    assert "called by two threads at once" in failed.failure
    found = tune_graph(lambda: line(count, alone), 2.0)
    assert found.chosen["work"].workers == 1


def test_an_iterator_in_a_graph_is_refused_before_it_is_used() -> None:
    graph = Graph("once")
    graph.sink("out", after=graph.source("read", iter(range(9))))
    with pytest.raises(GraphTuningError, match=r"source 'read' of graph 'once' is an iterator.*creates and returns"):
        GraphTrials(graph, SECONDS)


def test_an_iterator_that_a_function_shares_is_noticed() -> None:
    shared = iter(range(9))
    trials = GraphTrials(lambda: line(lambda: shared, int), SECONDS)
    assert trials(trials.declared).items == 9
    with pytest.raises(GraphTuningError, match="none in run 2"):
        trials(trials.declared)


def test_a_function_that_returns_one_graph_is_treated_as_the_graph() -> None:
    graph = Graph("once")
    graph.sink("out", after=graph.source("read", iter(range(9))))
    trials = GraphTrials(lambda: graph, SECONDS)
    trials(trials.declared)
    with pytest.raises(GraphTuningError, match="is an iterator"):
        trials(trials.declared)


def test_a_graph_that_yields_nothing_is_reported() -> None:
    trials = GraphTrials(lambda: line(lambda: iter(())), SECONDS)
    with pytest.raises(GraphTuningError, match="ended without an item at 'out'"):
        trials(trials.declared)


def test_a_graph_whose_first_item_takes_too_long_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "FIRST_ITEM", 10.0)
    trials = GraphTrials(lambda: line(count, lambda item: threading.Event().wait(0.5)), 0.001)
    with pytest.raises(GraphTuningError, match=r"no item reached 'out' within 10 ms; in that time \w+ was busy"):
        trials(trials.declared)


def test_a_graph_that_stops_after_some_items_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "FIRST_ITEM", 50.0)
    measured, measure = threading.Event(), trials_module._Watched.measure

    def stalls(item: int) -> int:
        if item == 1:  # of those before it, some may be delivered after the warm-up, and would be measured
            assert measured.wait(30.0), "the trial is measured while the item stalls, however busy the machine is"
        return item

    def measure_then_release(watched: trials_module._Watched, began: float, seconds: float, whole: bool) -> Interval:
        try:
            return measure(watched, began, seconds, whole)
        finally:
            measured.set()

    monkeypatch.setattr(trials_module._Watched, "measure", measure_then_release)
    trials = GraphTrials(lambda: line(count, stalls), 0.01)
    with pytest.raises(GraphTuningError, match=r"no item after the first \d reached 'out' within 500 ms"):
        trials(trials.declared)


@pytest.mark.parametrize(("items", "seconds"), [(2, 4.0), (4, 2.0), (1, 5.0), (800, 1.0)])
def test_slow_items_get_longer_trials(items: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = Interval(items, 1.0, RunStatistics("made up", 1.0, ()), ended=False, before=1)
    monkeypatch.setattr(trials_module, "measure_run", lambda *_: interval)
    trials = GraphTrials(lambda: line(count), 1.0, longest=5.0)
    trials.calibrate()
    assert trials.measured_seconds == seconds


def test_functions_that_are_no_factories_are_reported() -> None:
    def broken() -> Graph:
        raise OSError("no such folder")

    with pytest.raises(GraphTuningError, match="raised OSError: no such folder"):
        GraphTrials(broken, SECONDS)
    with pytest.raises(GraphTuningError, match="returned 7"):
        GraphTrials(lambda: 7, SECONDS)  # type: ignore[arg-type, return-value]
    with pytest.raises(GraphTuningError, match=r"no stage 'wrok'; it has \['read', 'work', 'out'\]"):
        GraphTrials(lambda: line(count), SECONDS, fixed=["wrok"])


def test_a_graph_that_changes_is_noticed() -> None:
    other = Graph("other")
    other.sink("end", after=other.source("read", count))
    graphs = iter([line(count), other])
    trials = GraphTrials(lambda: next(graphs), SECONDS)
    trials(trials.declared)
    with pytest.raises(GraphTuningError, match="same graph every time"):
        trials(trials.declared)


class Pairs:
    """A function that returns at once if two threads call it, and after 30 ms if one does: far slower anywhere."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = self._pairs = 0

    def __call__(self, item: int) -> int:
        with self._changed:
            self._waiting += 1
            if self._waiting == 2:
                self._waiting = 0
                self._pairs += 1
                self._changed.notify_all()
                return item
            before = self._pairs
            if not self._changed.wait_for(lambda: self._pairs != before, 0.03):
                self._waiting -= 1
        return item


def test_a_real_graph_is_tuned_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "MOST_WORKERS", 2)
    monkeypatch.setattr(proposals, "MOST_CAPACITY", 2)
    graph = line(count, Pairs())
    before = graph.stages
    found = run_trials(GraphTrials(graph, 0.1, longest=0.1), 8.0)
    assert graph.stages == before
    assert found.chosen["work"].workers == 2
    assert found.final is not None
    assert found.final.ratio > 1.5
    assert found.tried[0].why.startswith("work is the bottleneck")


def test_a_search_that_ends_with_other_sizes_leaves_the_graph_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it fails; the last trial of a whole search may be one of the declared sizes."""
    graph = line(lambda: iter(range(5)))
    before, used = graph.stages, list[int]()

    def measure_others(declared: GraphSizes, freedoms: object, trials: GraphTrials, *_: object) -> None:
        trials(declared.changed("work", workers=2))
        used.extend(stage.workers for stage in graph.stages if stage.name == "work")
        raise InterruptedError

    monkeypatch.setattr(tune, "search_sizes", measure_others)
    with pytest.raises(InterruptedError):
        run_trials(GraphTrials(graph, SECONDS), 1.0)
    assert used == [2]
    assert graph.stages == before


def test_an_interrupt_ends_every_thread() -> None:
    def interrupt(item: int) -> int:
        raise KeyboardInterrupt

    def build() -> Graph:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_graph(build, 1.0)
    with pytest.raises((KeyboardInterrupt, GraphTuningError)):
        tune_graph(lambda: line(count, interrupt), 1.0)
