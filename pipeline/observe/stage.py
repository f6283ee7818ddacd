"""A stage as a graph declares it: its kind, its settings, and the handles that builders pass on."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from threadloom.pipeline.policy import FailFast, Fifo, OnError, Policy

Out = TypeVar("Out")
Out_co = TypeVar("Out_co", covariant=True)


class Skip(Enum):
    """The type of SKIP."""

    SKIP = "skip"


SKIP: Final = Skip.SKIP
"""A stage function returns it to send nothing on: the item ends here."""


class NodeKind(Enum):
    """What a node of the graph is."""

    SOURCE = "source"
    STAGE = "stage"
    SINK = "sink"


@dataclass(frozen=True, eq=False)
class Route:
    """One choice among several ways out of a node, made once for each item."""

    name: str
    key: Callable[[Any], Hashable]
    to: tuple[Hashable, ...]


@dataclass(frozen=True)
class Branch:
    """One of the ways of a route: the items whose key is `key`."""

    route: Route
    key: Hashable

    def __str__(self) -> str:
        return f"branch {self.key!r} of route {self.route.name!r}"


class Port(Enum):
    """What leaves a node besides what its route sends one way or another."""

    RESULTS = "results"
    LETTERS = "dead letters"

    def __str__(self) -> str:
        return f"the {self.value} of a stage"


Via = Port | Branch
"""Which of the things that leave a node an edge carries."""


class Deliverer(Protocol):
    """A graph, as far as a sink needs to know it."""

    def deliver(self, sink: "Sink[Out]") -> Iterator[Out]: ...


@dataclass(frozen=True)
class Node(Generic[Out_co]):
    """A source, a stage or a branch of one graph, as its builder sees it: something that others may come `after`."""

    name: str
    graph: object = field(repr=False)
    via: Via = Port.RESULTS


@dataclass(frozen=True)
class Sink(Generic[Out_co]):
    """A sink of one graph, as its builder sees it.

    `for item in sink` runs the graph, and `run.items(sink)` takes what comes out of a run; both know the items' type.
    """

    name: str
    graph: Deliverer = field(repr=False)

    def __iter__(self) -> Iterator[Out_co]:
        return self.graph.deliver(self)


@dataclass(frozen=True)
class Stage:
    """One node of a graph, with everything it was declared with."""

    name: str
    kind: NodeKind
    after: tuple[str, ...] = ()
    fn: Callable[..., Any] | None = None  # of a source: () -> iterable; of a sink: None
    workers: int = 1
    capacity: int = 2
    admission: Policy[Any] = field(default_factory=Fifo)
    gathers: bool = False  # whether what the function takes is several items: a group, or a tuple of a join
    expand: bool = False
    closes: bool = False  # whether the iterables that `fn` returns are made for us, and so ours to close
    acquire: Callable[[Any], object] | None = None
    when: Callable[[Any], bool] | None = None
    ordered: bool = False
    on_error: OnError = field(default_factory=FailFast)
    limit: float | None = None  # seconds for one item
    via: tuple[Via, ...] = ()  # what comes from each node of `after`; empty when it is the results of all

    def inputs(self) -> tuple[tuple[str, Via], ...]:
        """Return the nodes that it comes after, each with what comes from there."""
        via = self.via or (Port.RESULTS,) * len(self.after)
        return tuple(zip(self.after, via, strict=True))
