"""Stages and the edges between them, declared and checked before anything starts.

    graph = Graph("words")
    lines = graph.source("read", open("book.txt"))
    words = graph.stage("split", str.split, after=lines, workers=2)
    for word in graph.sink("report", after=words):
        print(word)

A node can only come after nodes that exist, so a graph has no cycle and every node is reachable from a source. Types
flow along the edges: a function that does not take what the node before it makes fails in mypy.

Every stage has one channel in front of it, whatever comes after whatever: several nodes in `after` are merged into it,
and a node that several stages come after sends each of them every item for which their `when` holds. `route` sends an
item one of several ways, and `join` puts one item of each of several inputs together.

Several sinks of one run have to be iterated at the same time, by a thread each: while one is drained to its end, the
others fill up, hold up the stages in front of them, and the run stands still. The watchdog names the sink then.
"""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, Unpack, overload

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.graph.checks import check_graph, check_route, check_stage
from threadloom.pipeline.graph.settings import RunOptions, StageOptions
from threadloom.pipeline.observe import Branch, Node, NodeKind, Port, Route, RunStatistics, Sink, Skip, Stage, Via
from threadloom.pipeline.policy import DeadLetter, Fifo, Gather, Join, Policy
from threadloom.pipeline.run import Run

In = TypeVar("In")
Out = TypeVar("Out")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Key = TypeVar("Key", bound=Hashable)

FIFO = Fifo()


class Graph:
    """A graph of named stages. It holds declarations alone, so it can be started any number of times."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The name that its threads begin with."""
        self._stages: dict[str, Stage] = {}
        self._routes: dict[str, Route] = {}

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
        self._add(Stage(name, NodeKind.SOURCE, fn=fn, closes=made_here))  # type: ignore[arg-type]
        return Node(name, self)

    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[In], Out | Skip],
        *,
        after: Node[In] | Sequence[Node[In]],
        admission: Policy[In] = FIFO,
        acquire: Callable[[In], object] | None = None,
        when: Callable[[In], bool] | None = None,
        gather: None = None,
        expand: Literal[False] = False,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[In], Iterable[Out | Skip]],
        *,
        after: Node[In] | Sequence[Node[In]],
        expand: Literal[True],
        admission: Policy[In] = FIFO,
        acquire: Callable[[In], object] | None = None,
        when: Callable[[In], bool] | None = None,
        gather: None = None,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[list[In]], Out | Skip],
        *,
        after: Node[In] | Sequence[Node[In]],
        gather: Gather[In],
        acquire: Callable[[list[In]], object] | None = None,
        when: Callable[[In], bool] | None = None,
        expand: Literal[False] = False,
        **options: Unpack[StageOptions],
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
        acquire: Callable[[list[In]], object] | None = None,
        when: Callable[[In], bool] | None = None,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    def stage(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        after: Node[Any] | Sequence[Node[Any]],
        admission: Policy[Any] = FIFO,
        acquire: Callable[[Any], object] | None = None,
        when: Callable[[Any], bool] | None = None,
        gather: Gather[Any] | None = None,
        expand: bool = False,
        **options: Unpack[StageOptions],
    ) -> Node[Any]:
        """Add a stage: workers that call `fn` on what comes `after` other nodes, and send on what it returns.

        `fn` is a function, or `per_worker(...)` for one with set-up and tear-down. `admission` says in what order items
        leave the channel in front of it. With `gather`, `fn` takes a list of items instead. With `expand`, `fn` returns
        an iterable, and each element of it is sent on as it is made. A result of SKIP is not sent on. `acquire` is
        called with the item just before `fn` and may wait for a resource. `when` selects: an item for which it is false
        does not come here. A stage that nothing comes after is run for its effect. `StageOptions` has the rest.
        """
        if gather is not None and admission != FIFO:
            raise GraphError(
                f"stage {name!r} has both gather and admission={admission!r}, and its channel can follow only one: "
                f"leave out admission, sort inside the groups with Gather(sort=...), or put the groups in order with "
                f"an InOrder on the next stage"
            )
        stage = Stage(
            name,
            NodeKind.STAGE,
            self._names(name, after),
            fn,
            admission=gather if gather is not None else admission,
            gathers=gather is not None,
            expand=expand,
            closes=expand,
            acquire=acquire,
            when=when,
            via=_vias(after),
            **options,
        )
        self._add(stage)
        return Node(name, self)

    @overload
    def join(
        self,
        name: str,
        fn: Callable[[tuple[A, B]], Out | Skip],
        *,
        after: tuple[Node[A], Node[B]],
        keys: tuple[Callable[[A], Hashable], Callable[[B], Hashable]] | None = None,
        drop_unmatched: bool = False,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    @overload
    def join(
        self,
        name: str,
        fn: Callable[[tuple[A, B, C]], Out | Skip],
        *,
        after: tuple[Node[A], Node[B], Node[C]],
        keys: tuple[Callable[[A], Hashable], Callable[[B], Hashable], Callable[[C], Hashable]] | None = None,
        drop_unmatched: bool = False,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    @overload
    def join(
        self,
        name: str,
        fn: Callable[[tuple[In, ...]], Out | Skip],
        *,
        after: Sequence[Node[In]],
        keys: Sequence[Callable[[In], Hashable]] | None = None,
        drop_unmatched: bool = False,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    def join(
        self,
        name: str,
        fn: Callable[[Any], Any],
        *,
        after: Sequence[Node[Any]],
        keys: Sequence[Callable[[Any], Hashable]] | None = None,
        drop_unmatched: bool = False,
        **options: Unpack[StageOptions],
    ) -> Node[Any]:
        """Add a stage whose `fn` takes a tuple with one item of each of several inputs.

        Items belong together when the `keys` of their inputs agree, or else by position: the first of each input, then
        the second. What has no partner at the end of the input fails the run, or is dropped with `drop_unmatched`.

        `capacity` is how many items of one input may wait for their partners. If one way from a fork to the join loses
        items or delivers them further out of order than that, the other way fills up and the run stands still: the
        watchdog says so. Raise the capacity, or send an item in place of each one that is lost.
        """
        names = self._names(name, after)
        admission = Join(names, None if keys is None else tuple(keys), drop_unmatched)
        self._add(
            Stage(name, NodeKind.STAGE, names, fn, admission=admission, gathers=True, via=_vias(after), **options)
        )
        return Node(name, self)

    def route(
        self, name: str, key: Callable[[In], Key], *, after: Node[In] | Sequence[Node[In]], to: Sequence[Key]
    ) -> Mapping[Key, Node[In]]:
        """Send each item one of several ways: return the branches, by key, for stages to come `after`.

        `key(item)` is called once for each item, by the worker that sends it, and must return one of `to`; another key
        fails the run. A route has no thread and no channel of its own. Every branch must lead to one stage or sink.
        """
        route = Route(name, key, tuple(to))
        nodes = self._nodes(name, after)
        check_route(route, _vias(nodes))
        if name in self._routes:
            raise GraphError(f"route {name!r} is already in graph {self.name!r}: give each a name of its own")
        if len(nodes) != 1:
            raise GraphError(
                f"route {name!r} comes after {len(nodes)} nodes ({', '.join(each.name for each in nodes)}): merge them "
                f"with a stage in front of it, or give each a route of its own"
            )
        self._routes[name] = route
        return {each: Node(nodes[0].name, self, Branch(route, each)) for each in to}

    def dead_letters(self, stage: Node[Any]) -> Node[DeadLetter]:
        """Return what a stage skips because its function raised, for a stage or a sink to come `after`.

        A dead letter has the item, the error and the stage. Someone has to take them, like the results of a stage.
        """
        (node,) = self._nodes(f"the dead letters of {getattr(stage, 'name', stage)}", stage)
        declared = self._stages[node.name]
        if not declared.on_error.skips:
            raise GraphError(
                f"{declared.kind.value} {node.name!r} has on_error={declared.on_error!r}, which skips nothing, so it "
                f"has no dead letters: give it on_error=SkipFailed(...), or Retry(..., then=SkipFailed(...))"
            )
        return Node(node.name, self, Port.LETTERS)

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
        names = self._names(name, after)
        self._add(
            Stage(name, NodeKind.SINK, names, capacity=capacity, admission=admission, when=when, via=_vias(after))
        )
        return Sink(name, self)

    def start(self, **options: Unpack[RunOptions]) -> Run:
        """Check the graph and return a run of it; `with` starts its threads, and ends them whatever happens.

        `RunOptions` has the keyword arguments.
        """
        self.check()
        return Run(self.name, self.stages, **options)

    def run(self, **options: Unpack[RunOptions]) -> RunStatistics:
        """Run a graph without sinks to its end, and return its statistics; the keyword arguments are those of start."""
        sinks = [stage.name for stage in self.stages if stage.kind is NodeKind.SINK]
        if sinks:
            raise GraphError(
                f"graph {self.name!r} has sinks {sinks}, and run() would leave what comes there: iterate the graph, "
                f"or let a stage take the items instead"
            )
        with self.start(**options) as run:
            run.wait()
            return run.statistics()

    def __iter__(self) -> Iterator[Any]:
        """Run the graph and iterate its one sink; `for item in sink` does the same and knows the type of the items.

        The run lives as long as the iterator. A `for` statement is the only holder of its iterator, and CPython drops
        it as the loop is left - by its end, `break`, `return` or any exception, a KeyboardInterrupt in the loop's body
        too - before the exception reaches anyone: a traceback keeps the variables of a frame, and a loop's iterator is
        none. So the threads are joined before the statement after the loop, as with `start`. What `start` does more:
        it takes options, gives statistics and control, and raises a failure that came after `break`. An iterator that
        you keep in a variable of your own keeps the threads: close() it, or use `start`.
        """
        sinks = [stage.name for stage in self.stages if stage.kind is NodeKind.SINK]
        if len(sinks) != 1:
            remedy = f"iterate run.items(sink) for each of {sinks}" if sinks else "use run()"
            raise GraphError(f"graph {self.name!r} has {len(sinks)} sinks, and only one can be iterated so: {remedy}")
        return self.deliver(Sink(sinks[0], self))

    def deliver(self, sink: Sink[Out]) -> Generator[Out, None, None]:
        """Run the graph and yield what comes out of its only sink: what iterating a graph or a sink does."""
        others = [stage.name for stage in self.stages if stage.kind is NodeKind.SINK and stage.name != sink.name]
        if others:
            raise GraphError(
                f"graph {self.name!r} has other sinks than {sink.name!r}: {others}. Nobody would take what comes "
                f"there: use start() and iterate all, each in a thread of its own"
            )
        with self.start() as run:
            yield from run.items(sink)

    def check(self) -> None:
        """Raise GraphError if the graph as a whole cannot run. What concerns one stage was checked as it was added."""
        check_graph(self.name, self.stages, self._routes.values())

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
        check_stage(changed)
        self._stages[name] = changed

    def _add(self, stage: Stage) -> None:
        if not stage.name:
            raise GraphError(f"a {stage.kind.value} of graph {self.name!r} has an empty name: give it one")
        if stage.name in self._stages:
            raise GraphError(
                f"stage {stage.name!r} is already in graph {self.name!r}, as a {self._stages[stage.name].kind.value}: "
                f"give each a name of its own"
            )
        check_stage(stage)
        self._stages[stage.name] = stage

    def _nodes(self, name: str, after: Node[Any] | Sequence[Node[Any]]) -> tuple[Node[Any], ...]:
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
        return nodes

    def _names(self, name: str, after: Node[Any] | Sequence[Node[Any]]) -> tuple[str, ...]:
        nodes = self._nodes(name, after)
        names = tuple(node.name for node in nodes)
        if len({(node.name, node.via) for node in nodes}) != len(nodes):
            raise GraphError(f"stage {name!r} comes after the same node twice ({', '.join(names)}): name each once")
        return names


def _vias(after: Node[Any] | Sequence[Node[Any]]) -> tuple[Via, ...]:
    """Return what comes from each node; empty if that is the results of all of them."""
    vias = (after.via,) if isinstance(after, Node) else tuple(node.via for node in after)
    return () if set(vias) == {Port.RESULTS} else vias
