"""The workers and capacities of a graph: which of them may vary, and a graph with other ones."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.policy import Join


@dataclass(frozen=True)
class StageSize:
    """The size of one node."""

    name: str
    workers: int
    """Items in processing at once: the workers of a stage, or the `concurrency` of a worker of a coroutine stage."""
    capacity: int
    """Capacity of the input channel."""


@dataclass(frozen=True)
class GraphSizes:
    """The sizes of all nodes of a graph, in the order of declaration."""

    nodes: tuple[StageSize, ...]

    @classmethod
    def of(cls, stages: Iterable[Stage]) -> "GraphSizes":
        """Return the sizes that are declared."""
        return cls(tuple(StageSize(each.name, each.concurrency or each.workers, each.capacity) for each in stages))

    def __getitem__(self, name: str) -> StageSize:
        return next(node for node in self.nodes if node.name == name)

    def changed(self, name: str, *, workers: int | None = None, capacity: int | None = None) -> "GraphSizes":
        """Return the sizes with another number of workers or another capacity of one node."""
        old = self[name]
        new = StageSize(name, workers or old.workers, capacity or old.capacity)
        return GraphSizes(tuple(new if node.name == name else node for node in self.nodes))

    def differences(self, other: "GraphSizes") -> list[StageSize]:
        """Return the sizes of the nodes that differ from those of `other`."""
        return [node for node in self.nodes if node != other[node.name]]

    @property
    def total(self) -> tuple[int, int]:
        """The workers and the capacities of all nodes: fewer are preferred at equal speed."""
        return sum(node.workers for node in self.nodes), sum(node.capacity for node in self.nodes)


@dataclass(frozen=True)
class Freedom:
    """Which sizes of a node may vary, and how they are written."""

    kind: NodeKind
    workers: bool
    """True if the number of workers may vary."""
    capacity: bool
    """True if the capacity may vary; it is never reduced, because a join or the order of items may need it."""
    why_fixed: str = ""
    """Why the number of workers may not vary."""
    keyword: str = "workers"
    """The argument of `stage` that determines `StageSize.workers`."""
    needs_order: bool = False
    """True if several workers need `ordered=True` to send results in the order in which one worker does."""

    def arguments(self, size: StageSize) -> str:
        """Return the keyword arguments of a node: workers=2, capacity=4, ordered=True."""
        workers = [] if self.kind is not NodeKind.STAGE else [f"{self.keyword}={size.workers}"]
        ordered = ["ordered=True"] if self.needs_order and size.workers > 1 else []
        return ", ".join([*workers, f"capacity={size.capacity}", *ordered])


def freedoms_of(stages: Iterable[Stage], fixed: Collection[str] = (), any_order: bool = False) -> Mapping[str, Freedom]:
    """Return, by name, which sizes of the nodes of a graph may vary.

    The nodes named in `fixed` keep their sizes. Unless `any_order` is True, results keep the order that the declared
    graph guarantees.
    """
    found: dict[str, Freedom] = {}
    in_order: dict[str, bool] = {}  # True if the order in which a node sends items is determined
    for stage in stages:
        inputs = [in_order[name] for name in stage.after]
        sends_in_order = stage.threads == 1 or stage.ordered
        merges = len(inputs) > 1 and not (isinstance(stage.admission, Join) and stage.admission.keys is None)
        in_order[stage.name] = sends_in_order and not merges and all(inputs)
        why = "it was excluded" if stage.name in fixed else _why_workers_are_fixed(stage)
        found[stage.name] = Freedom(
            kind=stage.kind,
            workers=not why,
            capacity=stage.kind is not NodeKind.SOURCE and stage.name not in fixed,
            why_fixed=why,
            keyword="workers" if stage.concurrency is None else "concurrency",
            needs_order=(stage.kind is NodeKind.STAGE and not any_order and in_order[stage.name] and not stage.ordered),
        )
    return found


def _why_workers_are_fixed(stage: Stage) -> str:
    if stage.kind is NodeKind.SOURCE:
        return "a source has one worker for each of its Shards" if stage.shards else "a source has one worker"
    if stage.kind is NodeKind.SINK:
        return "the items of a sink are taken by the caller"
    if stage.threads == 1 and hasattr(stage.fn, "flush"):
        return "its function is an object with flush, which collects all items"
    return ""


def with_sizes(graph: Graph, sizes: GraphSizes, freedoms: Mapping[str, Freedom]) -> Graph:
    """Set the sizes of a graph, for runs that are started later, and return it."""
    for stage in graph.stages:
        size, freedom = sizes[stage.name], freedoms[stage.name]
        ordered = size.workers > 1 if freedom.needs_order else stage.ordered
        changed = replace(stage, capacity=size.capacity, ordered=ordered)
        if stage.kind is NodeKind.STAGE and stage.concurrency is None:
            changed = replace(changed, workers=size.workers)
        elif stage.kind is NodeKind.STAGE:
            changed = replace(changed, concurrency=size.workers)
        graph.replace_stage(changed)
    return graph


Build = Graph | Callable[[], Graph]
"""A graph that can be started several times with the same items, or a function that returns a new one each time."""
