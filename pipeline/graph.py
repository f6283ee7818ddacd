"""Stages and the edges between them, declared and checked before anything starts.

    graph = Graph("words")
    lines = graph.source("read", open("book.txt"))
    words = graph.stage("split", str.split, after=lines, workers=2)
    graph.sink("report", after=words)
    with graph.start() as run:
        for item in run:
            print(item)

A node can only come after nodes that exist, so a graph has no cycle and every node is reachable from a source. Types
flow along the edges: a function that does not take what the node before it makes fails in mypy.

Every stage has one channel in front of it, whatever comes after whatever: several nodes in `after` are merged into it,
and a node that several stages come after sends each of them every item for which their `when` holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import Any, Literal, TypeVar, overload

from pipeline.admission import Fifo, Gather, Policy
from pipeline.engine import Abortable, Run
from pipeline.errors import GraphError, Label
from pipeline.stage import Kind, Node, Sink, Skip, Stage
from pipeline.statistics import RunStatistics
from pipeline.trace import Trace

In = TypeVar("In")
Out = TypeVar("Out")

FIFO = Fifo()


class Graph:
    """A graph of named stages. It holds declarations alone, so it can be started any number of times."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The name that its threads begin with."""
        self._stages: dict[str, Stage] = {}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What was declared, in that order."""
        return tuple(self._stages.values())

    def source(self, name: str, items: Iterable[Out] | Callable[[], Iterable[Out]]) -> Node[Out]:
        """Add a source, whose one worker iterates `items`.

        A function is called anew in each run, in the worker's thread; if it is a generator, it is closed there when the
        run ends early. An iterable is iterated as it is, and an iterator therefore only once.
        """
        made_here = callable(items) and not isinstance(items, Iterable)
        fn = items if made_here else lambda: items
        self._add(Stage(name, Kind.SOURCE, fn=fn, closes=made_here))  # type: ignore[arg-type]
        return Node(name, self)

    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[In], Out | Skip],
        *,
        after: Node[In] | Sequence[Node[In]],
        workers: int = 1,
        capacity: int = 2,
        admission: Policy[In] = FIFO,
        acquire: Callable[[In], object] | None = None,
        when: Callable[[In], bool] | None = None,
        gather: None = None,
        expand: Literal[False] = False,
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[In], Iterable[Out | Skip]],
        *,
        after: Node[In] | Sequence[Node[In]],
        expand: Literal[True],
        workers: int = 1,
        capacity: int = 2,
        admission: Policy[In] = FIFO,
        acquire: Callable[[In], object] | None = None,
        when: Callable[[In], bool] | None = None,
        gather: None = None,
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[list[In]], Out | Skip],
        *,
        after: Node[In] | Sequence[Node[In]],
        gather: Gather[In],
        workers: int = 1,
        capacity: int = 2,
        acquire: Callable[[list[In]], object] | None = None,
        when: Callable[[In], bool] | None = None,
        expand: Literal[False] = False,
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[list[In]], Iterable[Out | Skip]],
        *,
        after: Node[In] | Sequence[Node[In]],
        gather: Gather[In],
        expand: Literal[True],
        workers: int = 1,
        capacity: int = 2,
        acquire: Callable[[list[In]], object] | None = None,
        when: Callable[[In], bool] | None = None,
    ) -> Node[Out]: ...
    def stage(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        after: Node[Any] | Sequence[Node[Any]],
        workers: int = 1,
        capacity: int = 2,
        admission: Policy[Any] = FIFO,
        acquire: Callable[[Any], object] | None = None,
        when: Callable[[Any], bool] | None = None,
        gather: Gather[Any] | None = None,
        expand: bool = False,
    ) -> Node[Any]:
        """Add a stage: `workers` threads that call `fn` on what comes `after` other nodes, and send on what it returns.

        `capacity` bounds the channel in front of the stage, and `admission` says in what order items leave it. With
        `gather`, `fn` takes a list of items instead. With `expand`, `fn` returns an iterable, and each element of it is
        sent on as it is made. A result of SKIP is not sent on. `acquire` is called with the item just before `fn` and
        may wait for a resource. `when` selects: an item for which it is false does not come here. A stage that nothing
        comes after is run for its effect.
        """
        if gather is not None and admission != FIFO:
            raise GraphError(
                f"stage {name!r} has both gather and admission={admission!r}, and its channel can follow only one: "
                f"leave out admission, sort inside the groups with Gather(sort=...), or put the groups in order with "
                f"an InOrder on the next stage"
            )
        stage = Stage(
            name,
            Kind.STAGE,
            self._names(name, after),
            fn,
            workers,
            capacity,
            gather if gather is not None else admission,
            gathers=gather is not None,
            expand=expand,
            closes=expand,
            acquire=acquire,
            when=when,
        )
        self._add(stage)
        return Node(name, self)

    def sink(
        self,
        name: str,
        *,
        after: Node[Out] | Sequence[Node[Out]],
        capacity: int = 2,
        admission: Policy[Out] = FIFO,
        when: Callable[[Out], bool] | None = None,
    ) -> Sink[Out]:
        """Add a sink: a channel that the caller's thread iterates."""
        after_names = self._names(name, after)
        self._add(Stage(name, Kind.SINK, after_names, capacity=capacity, admission=admission, when=when))
        return Sink(name, self)

    def start(
        self,
        *,
        resources: Sequence[Abortable] = (),
        trace: Trace | None = None,
        label: Callable[[Any], Label] | None = None,
        grace: float = 10.0,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> Run:
        """Check the graph and return a run of it; `with` starts its threads, and ends them whatever happens.

        `resources` are aborted with the channels, so that no worker waits for one in vain. `label(item)` says which
        item something is, in errors and traces; it must know every type of item in the graph. `grace` is how many
        seconds threads may take to end before they are reported. `clock` counts nanoseconds.
        """
        self.check()
        return Run(self.name, self.stages, resources, trace, label, grace, clock)

    def run(
        self,
        *,
        resources: Sequence[Abortable] = (),
        trace: Trace | None = None,
        label: Callable[[Any], Label] | None = None,
        grace: float = 10.0,
        clock: Callable[[], int] = perf_counter_ns,
    ) -> RunStatistics:
        """Run a graph without sinks to its end, and return its statistics."""
        with self.start(resources=resources, trace=trace, label=label, grace=grace, clock=clock) as run:
            run.wait()
            return run.statistics()

    def check(self) -> None:
        """Raise GraphError if the graph as a whole cannot run. What concerns one stage was checked as it was added."""
        sources = [stage.name for stage in self.stages if stage.kind is Kind.SOURCE]
        if not sources:
            raise GraphError(f"graph {self.name!r} has no source, so nothing would ever happen: add one with source()")
        followed = {name for stage in self.stages for name in stage.after}
        for name in sources:
            if name not in followed:
                raise GraphError(
                    f"nothing comes after source {name!r}: give a stage or a sink after={name}, or remove it"
                )

    def resize(self, name: str, *, workers: int | None = None, capacity: int | None = None) -> None:
        """Change the workers or the capacity of a declared stage, for runs that start from now on."""
        if name not in self._stages:
            raise GraphError(f"graph {self.name!r} has no stage {name!r}; it has {list(self._stages)}")
        stage = self._stages[name]
        changed = replace(
            stage,
            workers=stage.workers if workers is None else workers,
            capacity=stage.capacity if capacity is None else capacity,
        )
        _check_stage(changed)
        self._stages[name] = changed

    def _add(self, stage: Stage) -> None:
        if not stage.name:
            raise GraphError(f"a {stage.kind.value} of graph {self.name!r} has an empty name: give it one")
        if stage.name in self._stages:
            raise GraphError(
                f"stage {stage.name!r} is already in graph {self.name!r}, as a {self._stages[stage.name].kind.value}: "
                f"give each a name of its own"
            )
        _check_stage(stage)
        self._stages[stage.name] = stage

    def _names(self, name: str, after: Node[Any] | Sequence[Node[Any]]) -> tuple[str, ...]:
        nodes = (after,) if isinstance(after, Node) else tuple(after)
        if not nodes:
            raise GraphError(f"stage {name!r} comes after nothing, so nothing would reach it: name at least one node")
        for node in nodes:
            if not isinstance(node, Node):
                raise GraphError(f"stage {name!r} comes after {node!r}: give what source() or stage() returned")
            if node.graph is not self:
                raise GraphError(
                    f"stage {name!r} comes after {node.name!r}, which belongs to another graph: add it here"
                )
        names = tuple(node.name for node in nodes)
        if len(set(names)) != len(names):
            raise GraphError(f"stage {name!r} comes after the same node twice ({', '.join(names)}): name each once")
        return names


def _check_stage(stage: Stage) -> None:
    if stage.kind is Kind.STAGE and not callable(stage.fn):
        raise GraphError(f"stage {stage.name!r} needs a function, got {stage.fn!r}")
    if stage.workers < 1:
        raise GraphError(f"stage {stage.name!r} needs at least 1 worker, got workers={stage.workers}")
    if stage.kind is not Kind.STAGE and stage.workers != 1:
        raise GraphError(
            f"{stage.kind.value} {stage.name!r} has one worker, got workers={stage.workers}: leave it at 1"
        )
    if stage.capacity < 1:
        raise GraphError(f"stage {stage.name!r} needs a capacity of at least 1 item, got capacity={stage.capacity}")
    if isinstance(stage.admission, Gather) and not stage.gathers:
        raise GraphError(
            f"{stage.kind.value} {stage.name!r} has admission=Gather(...): give a stage gather=Gather(...)"
        )
