"""A stage as a graph declares it: its kind, its settings, and the handles that builders pass on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from pipeline.admission import Fifo, Policy

Out_co = TypeVar("Out_co", covariant=True)


class Skip(Enum):
    """The type of SKIP."""

    SKIP = "skip"


SKIP: Final = Skip.SKIP
"""A stage function returns it to send nothing on: the item ends here."""


class Kind(Enum):
    """What a node of the graph is."""

    SOURCE = "source"
    STAGE = "stage"
    SINK = "sink"


@dataclass(frozen=True)
class Node(Generic[Out_co]):
    """A source or stage of one graph, as its builder sees it: something that others may come `after`."""

    name: str
    graph: object = field(repr=False)


@dataclass(frozen=True)
class Sink(Generic[Out_co]):
    """A sink of one graph, as its builder sees it; `run.items(sink)` iterates it with the type of its items."""

    name: str
    graph: object = field(repr=False)


@dataclass(frozen=True)
class Stage:
    """One node of a graph, with everything it was declared with."""

    name: str
    kind: Kind
    after: tuple[str, ...] = ()
    fn: Callable[..., Any] | None = None  # of a source: () -> iterable; of a sink: None
    workers: int = 1
    capacity: int = 2
    admission: Policy[Any] = field(default_factory=Fifo)
    gathers: bool = False
    expand: bool = False
    closes: bool = False  # whether the iterables that `fn` returns are made for us, and so ours to close
    acquire: Callable[[Any], object] | None = None
    when: Callable[[Any], bool] | None = None
