"""Which sizes of a graph may vary, and graphs with other sizes."""

from collections.abc import Iterable

from threadloom.pipeline import Gather, Graph, Shards, on_processes
from threadloom.pipeline.tuning.sizes import GraphSizes, freedoms_of, with_sizes


class Sums:
    """An object with `flush`: its calls share a state."""

    def __call__(self, item: int) -> int:
        return item

    def flush(self) -> Iterable[int]:
        return ()


async def fetch(item: int) -> int:
    return item


def double(item: int) -> int:
    return 2 * item


def total(pair: tuple[int, int]) -> int:
    return sum(pair)


def declared() -> Graph:
    graph = Graph("all kinds")
    read = graph.source("read", range(8))
    parts = graph.source("parts", Shards(range(4), range(4)))
    plain = graph.stage("plain", double, after=read)
    several = graph.stage("several", double, after=plain, workers=2, capacity=5)
    after = graph.stage("after", double, after=several)
    merged = graph.stage("merged", double, after=[after, parts])
    ordered = graph.stage("ordered", double, after=merged, workers=2, ordered=True)
    loop = graph.stage("loop", fetch, after=plain, concurrency=3)
    graph.stage("state", Sums(), after=loop)
    groups = graph.stage("groups", len, after=plain, gather=Gather(count=2))
    pairs = graph.join("pairs", total, after=(plain, groups))
    graph.stage("process", on_processes(double), after=pairs)
    graph.sink("out", after=ordered, capacity=7)
    return graph


def test_the_declared_sizes_are_read() -> None:
    sizes = GraphSizes.of(declared().stages)
    assert (sizes["several"].workers, sizes["several"].capacity) == (2, 5)
    assert (sizes["loop"].workers, sizes["out"].capacity, sizes["parts"].workers) == (3, 7, 2)


def test_stages_with_state_sources_and_sinks_keep_their_workers() -> None:
    found = freedoms_of(declared().stages)
    fixed = {name: freedom.why_fixed for name, freedom in found.items() if not freedom.workers}
    assert fixed.keys() == {"read", "parts", "state", "out"}
    assert "flush" in fixed["state"]
    assert "Shards" in fixed["parts"]
    assert [name for name, freedom in found.items() if not freedom.capacity] == ["read", "parts"]


def test_excluded_stages_keep_everything() -> None:
    freedom = freedoms_of(declared().stages, fixed=["plain"])["plain"]
    assert not freedom.workers
    assert not freedom.capacity


def test_order_is_needed_only_where_the_declared_graph_has_it() -> None:
    found = freedoms_of(declared().stages)
    in_order = {"plain", "groups", "pairs", "process"}
    assert {name for name, freedom in found.items() if freedom.needs_order} == in_order
    assert not any(freedom.needs_order for freedom in freedoms_of(declared().stages, any_order=True).values())


def test_a_graph_gets_sizes_and_gets_its_own_again() -> None:
    graph = declared()
    before, freedoms, sizes = graph.stages, freedoms_of(graph.stages), GraphSizes.of(graph.stages)
    larger = sizes.changed("plain", workers=4, capacity=9).changed("loop", workers=6).changed("several", workers=3)
    stages = {stage.name: stage for stage in with_sizes(graph, larger, freedoms).stages}
    assert (stages["plain"].workers, stages["plain"].capacity, stages["plain"].ordered) == (4, 9, True)
    assert (stages["loop"].workers, stages["loop"].concurrency) == (1, 6)
    assert (stages["several"].workers, stages["several"].ordered) == (3, False)
    assert stages["ordered"].ordered
    assert with_sizes(graph, sizes, freedoms).stages == before


def test_arguments_are_written_as_they_are_declared() -> None:
    graph = declared()
    freedoms, sizes = freedoms_of(graph.stages), GraphSizes.of(graph.stages)
    assert freedoms["plain"].arguments(sizes["plain"]) == "workers=1, capacity=2"
    assert freedoms["plain"].arguments(sizes.changed("plain", workers=2)["plain"]) == (
        "workers=2, capacity=2, ordered=True"
    )
    assert freedoms["loop"].arguments(sizes["loop"]) == "concurrency=3, capacity=2"
    assert freedoms["out"].arguments(sizes["out"]) == "capacity=7"
