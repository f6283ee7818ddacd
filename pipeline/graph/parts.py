"""Parts: graphs that are added to other graphs, with their names prefixed.

    clean = Graph("clean")                                    # an ordinary graph, which can be run and tested alone
    raw = clean.source("raw", ["a ", " b"])
    texts = clean.sink("texts", after=clean.stage("strip", str.strip, after=raw, workers=2))

    graph = Graph("words")
    lines = graph.source("lines", open("book.txt"))
    cleaned = graph.add(clean, {raw: lines})                  # the stage is called clean/strip
    graph.stage("count", count, after=cleaned[texts])

A source of the part that is in `inputs` is replaced by a node of the graph; other sources are copied. A sink becomes
the node that it follows. A sink that merges, selects or orders items becomes a stage that does the same. The
declarations are copied once: later changes of the part do not matter. Functions and policies are shared, not copied.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.observe import Branch, Node, NodeKind, Port, Route, Sink, Stage, Via
from threadloom.pipeline.policy import Fifo, Join

Out = TypeVar("Out")
Edge = tuple[str, Via]
"""A node of a graph by name, and its output."""


class Declared(Protocol):
    """The declarations of a graph."""

    @property
    def stages(self) -> tuple[Stage, ...]: ...
    @property
    def routes(self) -> tuple[Route, ...]: ...


@dataclass(frozen=True)
class Part:
    """The nodes of a graph that was added to another; returned by `Graph.add`."""

    name: str
    """Prefix of the names of its nodes."""
    graph: object
    """The graph to which it was added."""
    source: object
    """The graph that was added."""
    outputs: Mapping[str, Edge]
    """Node or sink of the added graph → the node with its results."""
    routes: Mapping[Route, Route]
    """Route of the added graph → its copy."""

    def __getitem__(self, node: Node[Out] | Sink[Out]) -> Node[Out]:
        """Return the node for `after` that has the items of a node or sink of the added graph."""
        if node.graph is not self.source or node.name not in self.outputs:
            raise GraphError(f"part {self.name!r} has no node {node.name!r}: pass a node or a sink of the added graph")
        via = node.via if isinstance(node, Node) else Port.RESULTS
        name, output = self._edge(node.name, via)
        return Node(name, self.graph, output)

    def edges(self, stage: Stage) -> Iterator[Edge]:
        """Return the predecessors of the copy of a stage."""
        for name, via in stage.inputs():
            yield self._edge(name, via)

    def _edge(self, name: str, via: Via) -> Edge:
        target, output = self.outputs[name]
        if via is Port.RESULTS:
            return target, output
        # A route follows the results of any node; other outputs belong to the node itself.
        if output is not Port.RESULTS or (via is Port.LETTERS and not target.startswith(f"{self.name}/")):
            raise GraphError(
                f"{via} of {name!r} in part {self.name!r} cannot be taken from its input {target!r}: insert a stage "
                f"after the source of the part, and take it from there"
            )
        return target, Branch(self.routes[via.route], via.key) if isinstance(via, Branch) else via


def copied_part(
    name: str, graph: object, source: Declared, inputs: Mapping[Node[Any], Node[Any]]
) -> tuple[Part, list[Stage]]:
    """Return `source` as a part of `graph`, and the copies of its stages that are to be added."""
    stages = source.stages
    outputs: dict[str, Edge] = dict(_replaced_sources(name, graph, source, inputs))
    routes = {route: replace(route, name=f"{name}/{route.name}") for route in source.routes}
    part = Part(name, graph, source, outputs, routes)
    added: list[Stage] = []
    for stage in stages:
        if stage.name in outputs:
            continue
        edges = tuple(part.edges(stage))
        if stage.kind is NodeKind.SINK and _passes(stage):
            outputs[stage.name] = edges[0]
            continue
        if len(set(edges)) != len(edges):
            raise GraphError(f"{stage.name!r} of part {name!r} would follow {edges[0][0]!r} twice: insert a stage")
        added.append(_copy(stage, name, edges))
        outputs[stage.name] = (added[-1].name, Port.RESULTS)
    return part, added


def _replaced_sources(
    name: str, graph: object, source: Declared, inputs: Mapping[Node[Any], Node[Any]]
) -> Iterator[tuple[str, Edge]]:
    """Return the sources of the part that nodes of the graph replace. Raises GraphError for other nodes."""
    if source is graph:
        raise GraphError(f"graph {name!r} cannot be added to itself")
    sources = [stage.name for stage in source.stages if stage.kind is NodeKind.SOURCE]
    old: Any
    new: Any
    for old, new in inputs.items():
        if not isinstance(old, Node) or old.graph is not source or old.name not in sources:
            raise GraphError(f"inputs of part {name!r} needs its sources ({', '.join(sources)}) as keys, got {old!r}")
        if not isinstance(new, Node) or new.graph is not graph:
            raise GraphError(f"input {old.name!r} of part {name!r} needs a node of the graph, got {new!r}")
        yield old.name, (new.name, new.via)


def _passes(sink: Stage) -> bool:
    """Return True if a sink delivers the items of one node as they are."""
    return len(sink.after) == 1 and sink.when is None and isinstance(sink.admission, Fifo)


def _copy(stage: Stage, prefix: str, edges: tuple[Edge, ...]) -> Stage:
    names, vias = tuple(name for name, _ in edges), tuple(via for _, via in edges)
    admission = replace(stage.admission, inputs=names) if isinstance(stage.admission, Join) else stage.admission
    copy = replace(
        stage,
        name=f"{prefix}/{stage.name}",
        after=names,
        via=() if set(vias) <= {Port.RESULTS} else vias,
        admission=admission,
    )
    return replace(copy, kind=NodeKind.STAGE, fn=_same) if stage.kind is NodeKind.SINK else copy


def _same(item: Any) -> Any:
    return item
