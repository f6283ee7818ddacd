"""Output routing of a stage: each result goes to every successor whose `when` accepts it, and to one branch per route.

Ownership: everything here belongs to the worker that calls it; only `Channel.put` touches state shared between threads.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from threadloom.pipeline.core import Cancelled, RouteError
from threadloom.pipeline.observe import Branch, Port, Route, Via
from threadloom.pipeline.run.channel import Channel

Send = Callable[[Any], None]


@dataclass(frozen=True)
class Edge:
    """An edge of the graph, seen from its upstream stage: the input channel of the successor."""

    to: str
    """Name of the successor."""
    channel: Channel[Any, Any]
    when: Callable[[Any], bool] | None = None
    via: Via = Port.RESULTS
    place: int | None = None
    """Index of this input if the successor is a join, else None."""

    def put(self, item: Any) -> None:
        """Put `item` into the channel, together with its input index if the successor is a join."""
        self.channel.put(item if self.place is None else (self.place, item))

    @property
    def plain(self) -> bool:
        """True if sending is `channel.put` alone, which raises nothing but Cancelled."""
        return self.when is None and self.via is Port.RESULTS and self.place is None and not self.channel.keyed


def sender(edges: Sequence[Edge]) -> Send:
    """Return the function that sends a result to each edge whose `when` accepts it and to one branch of each route."""
    if len(edges) == 1 and edges[0].plain:
        return edges[0].channel.put
    # In order of declaration; a route has the position of its first branch.
    outputs: dict[Edge | Route, Send] = {}
    for edge in edges:
        if isinstance(edge.via, Branch):
            route = edge.via.route
            if route not in outputs:
                outputs[route] = _send_by_key(route, [each for each in edges if _route_of(each) is route])
        else:
            outputs[edge] = _send_to(edge)
    sends = tuple(outputs.values())

    def send_to_all(item: Any) -> None:
        for send in sends:
            send(item)

    return send_to_all if len(sends) != 1 else sends[0]


def _send_to(edge: Edge) -> Send:
    def send(item: Any) -> None:
        try:
            if edge.when is None or edge.when(item):
                edge.put(item)
        except BaseException as error:
            _add_note(error, edge.to)
            raise

    return send


def _send_by_key(route: Route, edges: Sequence[Edge]) -> Send:
    table: dict[Hashable, Send] = {
        edge.via.key: _send_to(replace(edge, via=Port.RESULTS)) for edge in edges if isinstance(edge.via, Branch)
    }

    def send(item: Any) -> None:
        key = route.key(item)
        try:
            send_to_branch = table[key]
        except KeyError:
            raise RouteError(
                f"the key function of route {route.name!r} returned {key!r}; expected one of {list(route.to)}. Add the "
                f"key to `to`, or correct the key function"
            ) from None
        send_to_branch(item)

    return send


def _route_of(edge: Edge) -> Route | None:
    return edge.via.route if isinstance(edge.via, Branch) else None


def _add_note(error: BaseException, to: str) -> None:
    if not isinstance(error, Cancelled):
        error.add_note(f"raised while sending to stage {to!r}, by its `when`, its admission policy, or its channel")
