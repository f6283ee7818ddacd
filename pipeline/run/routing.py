"""The ways out of a stage: to every stage behind it whose `when` holds, and to one branch of each route.

Ownership: everything here belongs to the worker that calls it; what threads share is behind `Channel.put`.
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
    """A way out of a stage: the channel in front of the next one."""

    to: str
    channel: Channel[Any, Any]
    when: Callable[[Any], bool] | None = None
    via: Via = Port.RESULTS
    place: int | None = None
    """Which input of a join this is; None in front of everything else."""

    def put(self, item: Any) -> None:
        """Put `item` into the channel, with its place if a join has to know it."""
        self.channel.put(item if self.place is None else (self.place, item))

    @property
    def plain(self) -> bool:
        """Whether nothing but `channel.put` is to be done, and nothing but Cancelled can be raised by it."""
        return self.when is None and self.via is Port.RESULTS and self.place is None and not self.channel.keyed


def sender(edges: Sequence[Edge]) -> Send:
    """Return the function that sends a result: to each edge whose `when` holds, and one way of each route."""
    if len(edges) == 1 and edges[0].plain:
        return edges[0].channel.put
    # In the order of declaration, a route at the place of its first branch.
    ways: dict[Edge | Route, Send] = {}
    for edge in edges:
        if isinstance(edge.via, Branch):
            route = edge.via.route
            if route not in ways:
                ways[route] = _by_key(route, [each for each in edges if _route_of(each) is route])
        else:
            ways[edge] = _to_one(edge)
    sends = tuple(ways.values())

    def to_all(item: Any) -> None:
        for send in sends:
            send(item)

    return to_all if len(sends) != 1 else sends[0]


def _to_one(edge: Edge) -> Send:
    def send(item: Any) -> None:
        try:
            if edge.when is None or edge.when(item):
                edge.put(item)
        except BaseException as error:
            _note(error, edge.to)
            raise

    return send


def _by_key(route: Route, edges: Sequence[Edge]) -> Send:
    table: dict[Hashable, Send] = {
        edge.via.key: _to_one(replace(edge, via=Port.RESULTS)) for edge in edges if isinstance(edge.via, Branch)
    }

    def send(item: Any) -> None:
        key = route.key(item)
        try:
            way = table[key]
        except KeyError:
            raise RouteError(
                f"route {route.name!r} got the key {key!r} for an item, and leads to {list(route.to)}: list it in "
                f"`to`, or let the key function return one of those"
            ) from None
        way(item)

    return send


def _route_of(edge: Edge) -> Route | None:
    return edge.via.route if isinstance(edge.via, Branch) else None


def _note(error: BaseException, to: str) -> None:
    if not isinstance(error, Cancelled):
        error.add_note(f"raised while sending to stage {to!r}: by its `when`, its admission policy, or its channel")
