"""The comparison of dataflow engines: threadloom alone, with tiny sizes, and the checks with made-up engines."""

import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import engine_peers, engine_work, engines
from benchmarks.engine_peers import ENGINES, Engine
from benchmarks.engine_work import EnginePart, EngineWorkload, Feed, filled_array, no_op, numpy_square, numpy_work

pytestmark = pytest.mark.timeout(120)

NO_OP = EngineWorkload("no-op", EnginePart.THREADS, (no_op,), 20, 0.0)


def engine(adapter: Callable[..., Iterator[Any]], distribution: str | None = None) -> Engine:
    """Return an engine with one adapter for threads."""
    return Engine("made up", distribution, distribution or "json", adapter, None, None)


def test_threadloom_is_measured_alone(tmp_path: Path) -> None:
    arguments = ["--no-peers", "--rounds", "2", "--scale", "0.004", "--latency-items", "5", "--json"]
    names = ["no-op", "fan-out and join"]
    chosen = [word for name in names for word in ("--workload", name)]
    answer = CliRunner().invoke(engines.main, [*arguments, *chosen, "--out", str(tmp_path)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found == json.loads((tmp_path / "engines.json").read_text("utf-8"))
    assert [each["workload"] for each in found["comparisons"]] == names
    assert (found["versions"], found["left_out"]) == ({}, [])
    for comparison in found["comparisons"]:
        (side,) = comparison["sides"]
        assert side["engine"] == "threadloom"
        assert len(side["items_per_s"]) == len(side["first_s"]) == len(side["latency_s"]) == 2
        assert min(side["items_per_s"]) > 0
        assert comparison["without"] == ["threadloom, SharedPool"]
    assert "| threadloom | " in (tmp_path / "engines.md").read_text("utf-8")


def test_an_unknown_workload_is_a_sentence() -> None:
    answer = CliRunner().invoke(engines.main, ["--no-peers", "--workload", "tea"])
    assert answer.exit_code == 1
    assert "no workload is called 'tea': the workloads are 'no-op', " in answer.output


def test_arrays_from_processes_through_shared_memory() -> None:
    workload = EngineWorkload("arrays", EnginePart.PROCESSES, (partial(filled_array, 100),), 4, 0.0)
    shared = next(each for each in ENGINES if each.name == "threadloom, SharedPool")
    assert engines.check_answers(shared, workload)


def test_the_engines_of_the_standard_library_give_the_same_answers() -> None:
    futures = next(each for each in ENGINES if each.name == "concurrent.futures")
    join = EngineWorkload("join", EnginePart.JOIN, (partial(numpy_work, 10), partial(numpy_square, 10)), 4, 0.0)
    for workload in (NO_OP, join):
        assert engines.check_answers(futures, workload)
        assert engines.measure_throughput(futures, workload)[0] > 0


def test_results_that_a_data_loader_has_converted_are_the_same_answers() -> None:
    work = EngineWorkload("work", EnginePart.THREADS, (partial(numpy_work, 10),), 12, 0.0)
    converted = engine(lambda function, feed: (list(function(number)) for number in feed))
    assert engines.check_answers(converted, work)


@pytest.mark.parametrize("wrong", [lambda n: n + 1, lambda n: 0])
def test_a_wrong_answer_ends_the_comparison(wrong: Callable[[int], int]) -> None:
    liar = engine(lambda function, feed: map(wrong, feed))
    with pytest.raises(engines.WrongAnswer, match="made up returned other results than a plain loop on 'no-op'"):
        engines.compare_engines(NO_OP, [liar], 1, 5, lambda _: None)


def test_a_lost_result_ends_the_comparison() -> None:
    with pytest.raises(engines.WrongAnswer, match="19 of 20 results"):
        engines.measure_throughput(engine(lambda function, feed: iter(list(feed)[1:])), NO_OP)


class FakeTime:
    """A clock that only `sleep` advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_latency_is_measured_from_the_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    for module in (engines, engine_work):
        monkeypatch.setattr(module, "time", clock)

    def buffering(function: object, feed: Feed) -> Iterator[int]:
        yield from list(feed)

    workload = EngineWorkload("no-op", EnginePart.THREADS, (no_op,), 20, 0.5)
    assert engines.measure_latency(engine(lambda function, feed: iter(feed)), workload, 10, 0.0) == 0.0
    # Item k of 10 waits (9 - k) intervals; the items after the first fifth wait 0 to 7, with a median of 3.5.
    assert engines.measure_latency(engine(buffering), workload, 10, 0.25) == pytest.approx(3.5 * 0.5 - 0.25)


def test_ratios_are_medians_of_rounds() -> None:
    base, side = engines.Measurement("a", [100.0, 10.0, 50.0]), engines.Measurement("b", [50.0, 20.0, 50.0])
    assert side.ratio(base) == statistics.median([0.5, 2.0, 1.0])


def test_engines_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine(map).problem() is None
    missing = engine(map, "no-such-engine").problem()
    assert missing == "made up is not installed (pip install no-such-engine)"
    monkeypatch.setattr(engine_peers, "version", lambda name: "1.0")
    broken = engine(map, "no_such_engine").problem()
    assert broken == "made up 1.0 cannot be imported (No module named 'no_such_engine')"
    monkeypatch.setattr(engines, "ENGINES", (ENGINES[0], engine(map, "no_such_engine")))
    answer = CliRunner().invoke(
        engines.main, ["--workload", "no-op", "--rounds", "1", "--scale", "0.001", "--latency-items", "5"]
    )
    assert answer.exit_code == 0, answer.output
    assert f"Left out: {broken}." in answer.stdout
