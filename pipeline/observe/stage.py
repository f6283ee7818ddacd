"""Declarations of a graph: the nodes with their settings, and the handles that `after` takes."""

from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from threadloom.pipeline.policy import FailFast, Fifo, OnError, Policy, Rate

Out = TypeVar("Out")
Out_co = TypeVar("Out_co", covariant=True)


class Skip(Enum):
    """The type of SKIP."""

    SKIP = "skip"


SKIP: Final = Skip.SKIP
"""Returned by a stage function to send no result: the item ends at this stage."""


class NodeKind(Enum):
    """The kind of a node of the graph."""

    SOURCE = "source"
    STAGE = "stage"
    SINK = "sink"


@dataclass(frozen=True, eq=False)
class Route:
    """A choice among several outputs of a node, decided once per item."""

    name: str
    key: Callable[[Any], Hashable]
    to: tuple[Hashable, ...]


@dataclass(frozen=True)
class Branch:
    """One output of a route: the items whose key is `key`."""

    route: Route
    key: Hashable

    def __str__(self) -> str:
        return f"branch {self.key!r} of route {self.route.name!r}"


class Port(Enum):
    """The outputs of a node other than branches of its route."""

    RESULTS = "results"
    LETTERS = "dead letters"

    def __str__(self) -> str:
        return f"the {self.value} of a stage"


Via = Port | Branch
"""The output of a node that an edge carries."""


class Deliverer(Protocol):
    """The interface of a graph that a sink uses."""

    def deliver(self, sink: "Sink[Out]") -> Iterator[Out]: ...
    def deliver_async(self, sink: "Sink[Out]") -> AsyncIterator[Out]: ...
    def expected(self, node: str) -> int | None: ...


@dataclass(frozen=True)
class Node(Generic[Out_co]):
    """A handle of a source, a stage or a branch of one graph, for the `after` of other nodes."""

    name: str
    graph: object = field(repr=False)
    via: Via = Port.RESULTS


@dataclass(frozen=True)
class Sink(Generic[Out_co]):
    """A handle of a sink of one graph, which knows the type of its items.

    `for item in sink` runs the graph and iterates the sink, and so does `async for item in sink` without blocking the
    event loop; `run.items(sink)` iterates the sink of an existing run.
    """

    name: str
    graph: Deliverer = field(repr=False)

    def __iter__(self) -> Iterator[Out_co]:
        return self.graph.deliver(self)

    def __aiter__(self) -> AsyncIterator[Out_co]:
        return self.graph.deliver_async(self)

    def __length_hint__(self) -> int:
        """Return the expected number of items, for `operator.length_hint`; NotImplemented if it is unknown."""
        expected = self.graph.expected(self.name)
        return NotImplemented if expected is None else expected


@dataclass(frozen=True)
class Stage:
    """One node of a graph with all its settings."""

    name: str
    kind: NodeKind
    after: tuple[str, ...] = ()
    fn: Callable[..., Any] | None = None  # of a source: () -> iterable, see `shards`; of a sink: None
    workers: int = 1
    concurrency: int | None = None  # items in flight per worker, on its event loop; None without one
    capacity: int = 2
    admission: Policy[Any] = field(default_factory=Fifo)
    gathers: bool = False  # the argument of `fn` is several items: a group, or the tuple of a join
    expand: bool = False
    closes: bool = False  # the engine owns the iterables that `fn` returns, and closes them
    acquire: Callable[[Any], object] | None = None
    when: Callable[[Any], bool] | None = None
    ordered: bool = False  # of a source: its workers send in turn
    on_error: OnError = field(default_factory=FailFast)
    limit: float | None = None  # seconds per item
    rate: Rate | float | None = None  # items per second
    shards: int = 0  # of a source with shards: their number, one per worker; `fn` then takes the index of the worker
    length: Callable[[], int | None] | None = None  # of a source: the number of its items, if its iterable has one
    via: tuple[Via, ...] = ()  # the output of each node of `after`; empty if all are Port.RESULTS

    @property
    def threads(self) -> int:
        """Number of items in processing at once, each with a thread: the workers, times `concurrency` if given."""
        return self.workers * (self.concurrency or 1)

    def inputs(self) -> tuple[tuple[str, Via], ...]:
        """Return the predecessors, each with the output that the edge carries."""
        via = self.via or (Port.RESULTS,) * len(self.after)
        return tuple(zip(self.after, via, strict=True))
