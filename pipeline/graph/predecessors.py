"""The argument `after` of a node: its predecessors, checked, and the output of each that the edge carries."""

from collections.abc import Sequence
from typing import Any, Protocol

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.observe import Node, Port, Via

Predecessors = Node[Any] | Sequence[Node[Any]]


class Named(Protocol):
    """A graph, of which error messages need the name."""

    name: str


def nodes_of(graph: Named, name: str, after: Predecessors) -> tuple[Node[Any], ...]:
    """Return the predecessors of the node `name`. Raises GraphError if there is none, or one of another graph."""
    nodes = (after,) if isinstance(after, Node) else tuple(after)
    if not nodes:
        raise GraphError(f"stage {name!r} has no predecessors: pass at least one node in `after`")
    for node in nodes:
        if not isinstance(node, Node):
            raise GraphError(
                f"invalid predecessor {node!r} of stage {name!r}: expected a node returned by source() or stage()"
            )
        if node.graph is not graph:
            raise GraphError(
                f"predecessor {node.name!r} of stage {name!r} belongs to another graph: add it to graph {graph.name!r}"
            )
    return nodes


def names_of(graph: Named, name: str, after: Predecessors) -> tuple[str, ...]:
    """Return the names of the predecessors of the node `name`. Raises GraphError if one is there twice."""
    nodes = nodes_of(graph, name, after)
    names = tuple(node.name for node in nodes)
    if len({(node.name, node.via) for node in nodes}) != len(nodes):
        raise GraphError(f"stage {name!r} has a duplicate predecessor ({', '.join(names)})")
    return names


def vias_of(after: Predecessors) -> tuple[Via, ...]:
    """Return the output that each node of `after` refers to; empty if all are results."""
    vias = (after.via,) if isinstance(after, Node) else tuple(node.via for node in after)
    return () if set(vias) == {Port.RESULTS} else vias
