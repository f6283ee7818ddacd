"""Set-up and tear-down per worker: when, where and how often they run, and how their errors are reported."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from threadloom.pipeline import Cancelled, Graph, Run, StageFailure, per_worker

pytestmark = pytest.mark.timeout(60)


class Boom(Exception):
    pass


class Log:
    """The events of all threads, in order."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []

    def add(self, word: str) -> None:
        self.entries.append((word, threading.current_thread().name))

    def words(self, thread: str) -> list[str]:
        return [word for word, name in self.entries if name == thread]

    def count(self, word: str) -> int:
        return [each for each, _ in self.entries].count(word)


class Worked:
    """A context manager as a stage function; `fails` is the event at which it raises."""

    def __init__(self, log: Log, fails: str = "", both: threading.Barrier | None = None) -> None:
        self.log, self.fails, self.both = log, fails, both

    def __enter__(self) -> Self:
        self.note("enter")
        return self

    def __exit__(self, *error: object) -> bool:
        self.note("exit" if error[0] is None else "exit with error")
        return True  # must not suppress the error

    def __call__(self, item: int) -> int:
        self.note("call")
        if self.both is not None:
            self.both.wait()
        return item

    def note(self, word: str) -> None:
        self.log.add(word)
        if self.fails and word.startswith(self.fails):
            raise Boom(word)


def graph_of(fn: Callable[[int], int], count: int = 4, workers: int = 1) -> Graph:
    graph = Graph("g")
    graph.sink("out", after=graph.stage("work", fn, after=graph.source("draw", range(count)), workers=workers))
    return graph


def drain(run: Run) -> list[int]:
    return list(run)


def test_each_worker_sets_up_works_and_tears_down_in_its_own_thread() -> None:
    log = Log()
    both = threading.Barrier(2, timeout=30)
    with graph_of(per_worker(lambda: Worked(log, both=both)), workers=2).start() as run:
        assert sorted(drain(run)) == [0, 1, 2, 3]
    for worker in range(2):
        words = log.words(f"g.work-{worker}")
        assert (words[0], words[-1]) == ("enter", "exit")
        assert set(words[1:-1]) == {"call"}
        assert (words.count("enter"), words.count("exit")) == (1, 1)


def test_a_generator_function_works_as_well() -> None:
    log = Log()

    @contextmanager
    def worked() -> Iterator[Callable[[int], int]]:
        log.add("enter")
        try:
            yield lambda item: item + 1
        finally:
            log.add("exit")

    with graph_of(per_worker(worked)).start() as run:
        assert drain(run) == [1, 2, 3, 4]
    assert log.words("g.work-0") == ["enter", "exit"]
    assert per_worker(worked)(7) == 8


@pytest.mark.parametrize(("fails", "item"), [("enter", "set-up"), ("exit", "tear-down"), ("call", "0")])
def test_an_error_names_set_up_tear_down_or_item(fails: str, item: str) -> None:
    log = Log()
    with pytest.raises(StageFailure, match=f"stage 'work' .* failed on {item}: Boom") as caught:
        with graph_of(per_worker(lambda: Worked(log, fails))).start() as run:
            drain(run)
    assert (caught.value.stage, caught.value.item) == ("work", item)
    assert isinstance(caught.value.__cause__, Boom)
    assert log.count("exit with error") == (fails == "call")
    assert log.count("exit") == (fails == "exit")


def test_an_error_of_make_is_an_error_of_the_set_up() -> None:
    def make() -> Worked:
        raise Boom

    with pytest.raises(StageFailure, match="failed on set-up"), graph_of(per_worker(make)).start() as run:
        drain(run)


def test_the_error_of_an_item_has_precedence_over_that_of_the_tear_down() -> None:
    class Worst(Worked):
        def note(self, word: str) -> None:
            super().note(word)
            if word != "enter":
                raise Boom(word)

    with pytest.raises(StageFailure, match="failed on 0: Boom: call"):
        with graph_of(per_worker(lambda: Worst(Log()))).start() as run:
            drain(run)


@pytest.mark.parametrize("end", ["leave", "cancel"])
def test_a_run_that_ends_early_tears_down_too(end: str) -> None:
    log = Log()
    with graph_of(per_worker(lambda: Worked(log)), count=1000, workers=3).start() as run:
        next(iter(run))
        if end == "cancel":
            run.cancel()
            with pytest.raises(Cancelled):
                drain(run)
    assert log.count("enter") == log.count("exit") + log.count("exit with error") > 0


def test_the_set_up_counts_as_busy() -> None:
    now = [0]

    class Slow(Worked):
        def __enter__(self) -> Self:
            now[0] += 5_000_000_000
            return self

    with graph_of(per_worker(lambda: Slow(Log()))).start(clock=lambda: now[0]) as run:
        drain(run)
    assert run.statistics()["work"].busy == 5.0
