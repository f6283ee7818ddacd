"""Graphs of stages, declared and validated before any thread starts.

    graph = Graph("words")
    lines = graph.source("read", open("book.txt"))
    words = graph.stage("split", str.split, after=lines, workers=2)
    for word in graph.sink("report", after=words):
        print(word)

A node can only follow existing nodes, so a graph has no cycle and every node is reachable from a source. Types flow
along the edges: mypy rejects a function whose argument does not match the results of its predecessor.

Every stage has exactly one input channel in any topology: several nodes in `after` are merged into it, and a
node with several successors sends each of them every item for which their `when` is true. `route` sends each item to
one of several branches, and `join` combines one item of each of several inputs.

The sinks of one run must be iterated concurrently, each in its own thread: while one is iterated to its end, the others
fill up and block the stages upstream, and the run stalls. The watchdog then reports the sink.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Unpack, overload

from threadloom.pipeline.core import GraphError
from threadloom.pipeline.graph.argument_checks import check_names, check_run_options
from threadloom.pipeline.graph.checks import (
    check_dead_letters,
    check_drainable,
    check_no_other_sink,
    check_no_sink,
    check_route,
    only_sink,
)
from threadloom.pipeline.graph.declarations import Declarations
from threadloom.pipeline.graph.function_checks import (
    check_join_function,
    kind_of_stage,
    resolve_expand,
)
from threadloom.pipeline.graph.predecessors import names_of, nodes_of, vias_of
from threadloom.pipeline.graph.settings import Elements, Items, Later, RunOptions, StageOptions, set_defaults
from threadloom.pipeline.graph.sources import Shards, source_stage
from threadloom.pipeline.observe import (
    Branch,
    Node,
    NodeKind,
    Port,
    Route,
    RunStatistics,
    Sink,
    Skip,
    Stage,
)
from threadloom.pipeline.policy import DeadLetter, FailFast, Fifo, Gather, Join, OnError, OnFailure, Policy, Rate
from threadloom.pipeline.run import Run, RunSettings

In = TypeVar("In")
Out = TypeVar("Out")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
Key = TypeVar("Key", bound=Hashable)

FIFO = Fifo()
FAIL_FAST = FailFast()


class Graph(Declarations):
    """A graph of named stages. It contains declarations only, and can be started any number of times."""

    def __init__(self, name: str, **options: Unpack[RunOptions]) -> None:
        """Create an empty graph. `options` are defaults of the keyword arguments of `start`, also for a `for` loop."""
        check_run_options(f"graph {name!r}", options)
        self.name = name
        """Prefix of the names of its threads."""
        self._options = options
        self._stages: dict[str, Stage] = {}
        self._routes: dict[str, Route] = {}

    def source(
        self,
        name: str,
        items: Items[Out] | Callable[[], Items[Out]] | Shards[Out],
        *,
        on_error: OnError = FAIL_FAST,
        ordered: bool = False,
        rate: Rate | float | None = None,
    ) -> Node[Out]:
        """Add a source, whose single worker iterates `items`; `Shards` are iterated by one worker each.

        A function is called in each run, in the worker's thread; if it is a generator function, the generator is closed
        there when the run ends early. An iterable is iterated in each run, so an iterator yields items only once.
        An asynchronous iterable or generator is iterated on an event loop, with which a generator is closed.

        The elements of each shard are sent in order, and those of different shards as they come; with `ordered` in
        rounds: the first of each shard in the order of the shards, then the second. `on_error` decides about an error
        of `__next__`: the call is repeated, or the element is skipped. The iterator must be able to continue, which a
        generator is not: it has ended once it has raised. An error of the function that returns the iterable ends the
        run. The `item` of a dead letter of a source is the number of the element in its iterable, from 0. `rate` limits
        the elements per second, over all shards.
        """
        self._add(source_stage(name, items, on_error, ordered, rate))
        return Node(name, self)

    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[In], Later[Out]],
        *,
        after: Node[In] | Sequence[Node[In]],
        admission: Policy[In] = FIFO,
        acquire: Callable[[In], object] | None = None,
        when: Callable[[In], bool] | None = None,
        gather: None = None,
        expand: None = None,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
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
        expand: Literal[False] | None = None,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[In], Elements[Out]],
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
        fn: Callable[[list[In]], Later[Out]],
        *,
        after: Node[In] | Sequence[Node[In]],
        gather: Gather[In],
        acquire: Callable[[list[In]], object] | None = None,
        when: Callable[[In], bool] | None = None,
        expand: None = None,
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
        expand: Literal[False] | None = None,
        **options: Unpack[StageOptions],
    ) -> Node[Out]: ...
    @overload
    def stage(
        self,
        name: str,
        fn: Callable[[list[In]], Elements[Out]],
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
        expand: bool | None = None,
        **options: Unpack[StageOptions],
    ) -> Node[Any]:
        """Add a stage: workers that call `fn` with each item of the nodes in `after`, and send its results.

        `fn` is a function, or `per_worker(...)` for a function with set-up and tear-down. `admission` determines the
        order in which items are taken from the input channel. With `gather`, `fn` takes a list of items. With `expand`,
        which is the default of a generator function, `fn` returns an iterable, whose elements are sent as they are
        produced. A result of SKIP is not sent. `acquire`
        is called with the item just before `fn`, and may wait for a resource. Items for which `when` is false are not
        sent to this stage. A stage without successors is run for its side effects. If `fn` is an object with a method
        `flush`, that is called at the end of the input, and the elements of the iterable that it returns are sent: once
        for an object that all workers share, and by each worker for `per_worker` and processes; not after a failure.
        `StageOptions` documents the other
        keyword arguments. Raises GraphError if the stage is invalid.
        """
        check_names(f"stage {name!r}", options, StageOptions.__annotations__)
        if gather is not None and admission != FIFO:
            raise GraphError(
                f"stage {name!r} has both gather and admission={admission!r}, expected one of them: omit admission, "
                f"sort within groups by Gather(sort=...), or order the groups by an InOrder of the next stage"
            )
        expand = resolve_expand(f"stage {name!r}", kind_of_stage(fn), expand)
        set_defaults(fn, options)
        stage = Stage(
            name,
            NodeKind.STAGE,
            names_of(self, name, after),
            fn,
            admission=gather if gather is not None else admission,
            gathers=gather is not None,
            expand=expand,
            closes=expand,
            acquire=acquire,
            when=when,
            via=vias_of(after),
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

        Items are combined if their keys are equal (`keys` has one function per input), or without `keys` by position:
        the first items of all inputs, then the second. An item without partners at the end of the input fails the run,
        or is dropped with `drop_unmatched`.

        `capacity` is the number of items of one input that may wait for their partners. If one path from a fork to the
        join drops items, or reorders them by more than that, the other path fills up and the run deadlocks, which the
        watchdog reports. Increase the capacity, or send a placeholder for each dropped item.
        """
        check_names(f"join {name!r}", options, StageOptions.__annotations__)
        names = names_of(self, name, after)
        check_join_function(f"join {name!r}", kind_of_stage(fn))
        set_defaults(fn, options)
        admission = Join(names, None if keys is None else tuple(keys), drop_unmatched)
        self._add(
            Stage(name, NodeKind.STAGE, names, fn, admission=admission, gathers=True, via=vias_of(after), **options)
        )
        return Node(name, self)

    def route(
        self, name: str, key: Callable[[In], Key], *, after: Node[In] | Sequence[Node[In]], to: Sequence[Key]
    ) -> Mapping[Key, Node[In]]:
        """Add a route, which sends each item to one of several branches; return key → branch, for `after`.

        `key(item)` is called once per item, by the worker that sends it, and must return an element of `to`; any other
        key fails the run. A route has no threads and no channel. Each branch must have exactly one successor.
        """
        route = Route(name, key, tuple(to))
        nodes = nodes_of(self, name, after)
        check_route(route, nodes)
        if name in self._routes:
            raise GraphError(f"graph {self.name!r} already has a route {name!r}: use a different name")
        self._routes[name] = route
        return {each: Node(nodes[0].name, self, Branch(route, each)) for each in to}

    def dead_letters(self, stage: Node[Any]) -> Node[DeadLetter]:
        """Return the output of the items that a stage skips because its function raised, for the `after` of a node.

        The items of that output are `DeadLetter`s, and must be consumed like the results of a stage.
        """
        (node,) = nodes_of(self, f"the dead letters of {getattr(stage, 'name', stage)}", stage)
        check_dead_letters(self._stages[node.name])
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
        """Add a sink: a channel whose items the caller's thread iterates."""
        names = names_of(self, name, after)
        self._add(
            Stage(name, NodeKind.SINK, names, capacity=capacity, admission=admission, when=when, via=vias_of(after))
        )
        return Sink(name, self)

    def start(self, **options: Unpack[RunOptions]) -> Run:
        """Validate the graph and return a run; its `with` block starts the threads, and ends them in all cases.

        In a coroutine, `async with` does the same without blocking the event loop, and returns an `AsyncRun`.

        `RunOptions` documents the keyword arguments; those of the graph are the defaults. Raises GraphError if the
        graph is invalid.
        """
        check_run_options(f"a run of graph {self.name!r}", options)
        self.check()
        merged: RunOptions = {**self._options, **options}
        settings = RunSettings(**merged)
        if settings.on_failure == OnFailure.DRAIN:
            check_drainable(self.name, self.stages)
        return Run(self.name, self.stages, settings)

    def run(self, **options: Unpack[RunOptions]) -> RunStatistics:
        """Run a graph without sinks to its end and return its statistics.

        The keyword arguments are those of `start`.
        """
        check_no_sink(self.name, self.stages)
        with self.start(**options) as run:
            run.wait()
            return run.statistics()

    def __iter__(self) -> Iterator[Any]:
        """Run the graph and iterate its only sink; `for item in sink` does the same with typed items.

        The run ends with the iterator. A `for` statement holds the only reference to its iterator, and CPython drops it
        when the loop ends, by exhaustion, `break`, `return` or an exception (including a KeyboardInterrupt in the
        body), and before the exception propagates: a traceback keeps the local variables of a frame, but not the
        iterator of a loop. Therefore the threads have been joined before the next statement, as with `start`. A thread
        that does not end within the `grace` of the graph is logged, because Python cannot raise an error there.
        In addition, `start` provides statistics and control, and raises a failure that occurs after `break`. If you
        keep the iterator in a variable, the threads keep running: call its close(), or use `start`.
        """
        return self.deliver(Sink(only_sink(self.name, self.stages), self))

    def __aiter__(self) -> AsyncIterator[Any]:
        """Run the graph and iterate its only sink without blocking the event loop.

        Cancelling the task ends the run. After `break`, the event loop closes the iterator a moment later; use
        `async with graph.start() as run`, or `contextlib.aclosing`, to wait for that.
        """
        return self.deliver_async(Sink(only_sink(self.name, self.stages), self))

    def deliver(self, sink: Sink[Out]) -> Generator[Out, None, None]:
        """Run the graph and yield the items of its only sink; the iterator of a graph and of a sink."""
        check_no_other_sink(self.name, self.stages, sink.name)
        with self.start() as run:
            yield from run.items(sink)

    async def deliver_async(self, sink: Sink[Out]) -> AsyncGenerator[Out, None]:
        """Run the graph and yield the items of its only sink; the asynchronous iterator of a graph and of a sink."""
        check_no_other_sink(self.name, self.stages, sink.name)
        async with self.start() as run:
            async for item in run.items(sink):
                yield item
