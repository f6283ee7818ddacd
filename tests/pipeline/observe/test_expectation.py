"""Expected numbers of items: from declarations before a run, from constructed statistics in it, exact at its end."""

import operator
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from threadloom.pipeline import SKIP, Gather, Graph, Node, Shards, Skip, SkipFailed
from threadloom.pipeline.observe import expected_items
from threadloom.pipeline.observe.statistics import ChannelStatistics, StageStatistics

pytestmark = pytest.mark.timeout(60)


def numbers(graph: Graph, items: int = 100) -> Node[int]:
    return graph.source("numbers", range(items))


def seen(name: str, items_in: int, items_out: int, accepted: int | None = None, workers: int = 1) -> StageStatistics:
    accepted = items_in if accepted is None else accepted
    return StageStatistics(
        name, workers, items_in, items_out, 0.0, 0.0, 0.0, ChannelStatistics(2, 0, 1.0, 2, accepted, 0.0, 0.0)
    )


def test_the_length_of_the_source_reaches_the_sink() -> None:
    graph = Graph("line")
    doubled = graph.stage("double", lambda n: 2 * n, after=numbers(graph), workers=3)
    sink = graph.sink("out", after=doubled)
    assert (graph.expected("double"), graph.expected("out"), operator.length_hint(sink)) == (100, 100, 100)
    assert sorted(sink) == [2 * n for n in range(100)]


@pytest.mark.parametrize("items", [iter(range(5)), count, lambda: range(5)])
def test_an_unknown_length_is_unknown(items: Iterator[int]) -> None:
    graph = Graph("unknown")
    sink = graph.sink("out", after=graph.source("items", items))
    assert graph.expected("out") is None
    assert operator.length_hint(sink, 7) == 7
    assert bool(sink)


def test_a_length_that_raises_is_unknown() -> None:
    class Stream(list[int]):
        def __len__(self) -> int:
            raise TypeError("this data set has no length")

    graph = Graph("stream")
    graph.sink("out", after=graph.source("items", Stream([1])))
    assert graph.expected("out") is None


def test_the_length_is_that_at_the_start_of_a_run() -> None:
    items = [1]
    graph = Graph("growing")
    graph.sink("out", after=graph.source("items", items))
    items += [2, 3]
    assert graph.expected("out") == 3


def test_merges_add_joins_take_the_shortest_and_groups_divide() -> None:
    graph = Graph("shapes")
    few, many = graph.source("few", range(10)), graph.source("many", range(35))
    graph.stage("merge", abs, after=[few, many])
    graph.join("pair", sum, after=(few, many), drop_unmatched=True)
    graph.stage("batch", sum, after=many, gather=Gather(count=10, partial=True))
    assert [graph.expected(name) for name in ("merge", "pair", "batch")] == [45, 10, 4]


def test_the_lengths_of_shards_add_up() -> None:
    graph = Graph("shards")
    graph.sink("out", after=graph.source("both", Shards(range(3), range(4))))
    graph.sink("unknown", after=graph.source("one", Shards(range(3), iter(range(4)))))
    assert (graph.expected("out"), graph.expected("unknown")) == (7, None)


def test_an_expansion_is_unknown_at_first_and_then_extrapolated() -> None:
    graph = Graph("words")
    words = graph.stage("split", str.split, after=graph.source("lines", ["a b"] * 100), expand=True)
    graph.sink("out", after=words)
    assert graph.expected("out") is None
    assert expected_items(graph.stages, {"split": seen("split", 20, 60)})["out"] == 300


def test_groups_by_weight_are_unknown_at_first_and_then_extrapolated() -> None:
    graph = Graph("packs")
    packs = Gather[int](count=10, weight=float, partial=True)
    graph.sink("out", after=graph.stage("pack", sum_of, after=numbers(graph), gather=packs))
    assert graph.expected("out") is None
    assert expected_items(graph.stages, {"pack": seen("pack", 4, 4, accepted=20)})["out"] == 20


def sum_of(group: list[int]) -> int:
    return sum(group)


def test_skipped_items_are_extrapolated_and_items_in_hand_are_not_lost() -> None:
    graph = Graph("filter")
    graph.sink("out", after=graph.stage("keep", abs, after=numbers(graph), workers=4, capacity=2))
    assert expected_items(graph.stages, {"keep": seen("keep", 6, 0, workers=4)})["out"] == 100
    assert expected_items(graph.stages, {"keep": seen("keep", 54, 25, workers=4)})["out"] == round(100 * (1 - 23 / 54))


def test_branches_and_selections_take_their_share() -> None:
    graph = Graph("routes")
    ways = graph.route("parity", lambda n: n % 4 == 0, after=numbers(graph), to=(True, False))
    graph.sink("fours", after=ways[True])
    graph.stage("others", abs, after=ways[False])
    so_far = {"numbers": replace(seen("numbers", 0, 40), channel=None), "fours": seen("fours", 9, 9, accepted=10)}
    assert expected_items(graph.stages, so_far)["fours"] == 25
    assert graph.expected("fours") == 100, "an upper bound before the first item"


def test_dead_letters_are_those_so_far() -> None:
    graph = Graph("letters")
    parsed = graph.stage("parse", int, after=graph.source("texts", ["1"] * 50), on_error=SkipFailed())
    graph.sink("out", after=[parsed, graph.dead_letters(parsed)])
    state = replace(seen("parse", 20, 17), skipped=2)
    assert expected_items(graph.stages, {"parse": state})["out"] == 50 + 2, (
        "two letters, and the last three items may still be sent"
    )


def test_the_expectation_at_the_end_is_the_number_of_items() -> None:
    def odd(number: int) -> int | Skip:
        return number if number % 2 else SKIP

    graph = Graph("exact")
    kept = graph.stage("odd", odd, after=numbers(graph, 200))
    pieces = graph.stage("repeat", lambda n: [n] * 3, after=kept, expand=True)
    graph.sink("out", after=graph.stage("pair", tuple, after=pieces, gather=Gather(count=2)))
    with graph.start() as run:
        assert len(list(run)) == 150
        for stage in run.statistics().values():
            taken = stage.items_in or stage.items_out
            # Of 200 items, 1 + 2 may be counted as taken and not as lost: 3, times 3 elements, by 2.
            assert stage.expected is not None
            assert 0 <= stage.expected - taken <= 9
