"""What happened in a run, written down by wrapped stage functions, and the faults that strike from within them.

Guarantees: `wrap` returns a graph of the same shape, in which every call of a source, a stage, a `when` and a sink's
consumer is written down, independently of what the engine counts; a fault of the plan strikes at its call, once.
Items themselves are not wrapped, so the engine and the user's functions see what they always see; a journal tells
items apart by identity, and keeps them all alive for that.

Ownership: everything but `run` belongs to `lock`; that is set by the thread of the harness.
"""

import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import SKIP, Branch, NodeKind, Port, Route, Stage, Via
from threadloom.pipeline.policy import Gather, InOrder
from threadloom.pipeline.processes import ProcessWorker
from threadloom.pipeline.run import PerWorker, Run
from threadloom.pipeline.testing.faults import STOPPING, Fault, FaultKind, FaultPlan, InjectedFault

NO_MOVE = 0.004
"""Seconds without any event after which a HOLD takes it that nothing moves any more."""


@dataclass(frozen=True)
class Fired:
    """A fault that struck."""

    fault: Fault
    late: bool
    """Whether the outcome of the run was decided before: then this one may not be reported."""
    when: float
    """time.monotonic() of the strike."""
    error: BaseException | None = None
    """What was raised, of the kinds that raise in the stage's or the caller's code."""


@dataclass
class NodeRecord:
    """What is known of one node, from the calls of its function."""

    begun: list[Any] = field(default_factory=list)  # items, of a gathering stage each on its own, in order of the calls
    groups: list[int] = field(default_factory=list)  # of a gathering stage or a join: the size of each group
    by_worker: dict[object, list[Any]] = field(default_factory=lambda: defaultdict(list))  # what each thread made
    made: int = 0  # results and elements that are not SKIP
    most_made: int = 1  # the largest number of them that one call made
    returned: int = 0  # calls that ended well
    raised: int = 0  # calls that raised, or whose elements were not asked for to the end
    retried: int = 0  # calls for the item that the same thread's last call failed with
    failed_with: dict[threading.Thread, Any] = field(default_factory=dict)
    calls: int = 0  # calls, or elements that a source was asked for: what `Fault.at` counts
    arrived: list[Any] = field(default_factory=list)  # what was sent here, by everyone before this node
    most_between: int = 0  # the largest number of items ever sent here and not begun
    between: int = 0
    keys: set[Any] = field(default_factory=set)  # keys of its admission policy that arrived
    hands: Counter[Any] = field(default_factory=Counter)  # keys in hand, of an exclusive order
    next_index: dict[Any, int] = field(default_factory=dict)  # of an order: key → the index that must come next

    @property
    def given_up(self) -> int:
        """Items that failed for good: skipped by a policy, or the end of the run."""
        return self.raised - self.retried


class Journal:
    """The records of one run."""

    def __init__(self, graph: Graph, plan: FaultPlan) -> None:
        self.lock = threading.RLock()  # re-entrant: the garbage of a generator may end a call while it is held
        self.moved = threading.Condition(self.lock)
        self.stages = {stage.name: stage for stage in graph.stages}
        self.of = {name: NodeRecord() for name in self.stages}
        # What comes after a node, of what every result goes to; once for each way that leads there.
        self.followers: dict[str, list[Stage]] = {name: [] for name in self.stages}
        self.branches: dict[Branch, Stage] = {}
        for stage in graph.stages:
            for name, via in stage.inputs():
                if isinstance(via, Branch):
                    self.branches[via] = stage
                elif stage.when is None and via is Port.RESULTS:
                    self.followers[name].append(stage)
        self.fired: list[Fired] = []
        self.wrong: list[str] = []  # what was seen to be wrong while it happened
        self.moves = 0  # events of any kind
        self.holding = 0  # threads in a HOLD
        self.children: dict[threading.Thread, ProcessWorker[Any, Any]] = {}  # each set by its own thread
        self.run: Run | None = None
        self.armed = False  # whether an INTERRUPT still finds the run
        self._faults: dict[tuple[str, int], list[Fault]] = defaultdict(list)
        for fault in plan.faults:
            self._faults[fault.stage, fault.at].append(fault)

    # What the wrapped functions say.

    def take_number(self, name: str) -> int:
        """Number a call of a node."""
        with self.lock:
            number = self.of[name].calls
            self.of[name].calls += 1
            return number

    def begin(self, name: str, item: Any) -> None:
        """Write down that a node was handed an item or a group."""
        stage, record = self.stages[name], self.of[name]
        items = list(item) if stage.gathers else [item]
        with self.lock:
            self._move()
            if record.failed_with.pop(threading.current_thread(), items) is item:
                record.retried += 1
                return
            record.begun.extend(items)
            record.between -= len(items)
            if stage.gathers:
                record.groups.append(len(items))
                self._check_group(stage, items)
            if isinstance(stage.admission, InOrder):
                self._check_turn(stage, stage.admission, item)

    def end(self, name: str, item: Any, error: bool) -> None:
        """Write down that a node is done with what `begin` gave it."""
        stage, record = self.stages[name], self.of[name]
        with self.lock:
            self._move()
            if error:
                record.raised += 1
                record.failed_with[threading.current_thread()] = item
            else:
                record.returned += 1
            if isinstance(stage.admission, InOrder) and stage.admission.exclusive and not error:
                record.hands[stage.admission.order(item)[0]] -= 1

    def make(self, name: str, result: Any) -> None:
        """Write down a result just before the engine sends it on."""
        if result is SKIP:
            return
        with self.lock:
            self._move()
            record = self.of[name]
            record.made += 1
            record.by_worker[threading.current_thread()].append(result)
            for follower in self.followers[name]:
                self._arrive(follower, result)

    def select(self, name: str, item: Any, chosen: bool) -> None:
        """Write down what the `when` of a node said."""
        if chosen:
            with self.lock:
                self._move()
                self._arrive(self.stages[name], item)

    def choose(self, branch: Branch, item: Any) -> None:
        """Write down which way the key of a route sends an item."""
        if branch in self.branches:
            with self.lock:
                self._move()
                self._arrive(self.branches[branch], item)

    def _arrive(self, stage: Stage, item: Any) -> None:
        record, policy = self.of[stage.name], stage.admission
        record.arrived.append(item)
        record.between += 1
        record.most_between = max(record.most_between, record.between)
        if isinstance(policy, InOrder):
            record.keys.add(policy.order(item)[0])
        elif isinstance(policy, Gather):
            record.keys.add(None if policy.key is None else policy.key(item))

    def _move(self) -> None:
        self.moves += 1
        if self.holding:
            self.moved.notify_all()

    def _check_group(self, stage: Stage, items: list[Any]) -> None:
        policy = stage.admission
        if not isinstance(policy, Gather):
            return
        if not items or len(items) > policy.count or (len(items) < policy.count and not policy.partial):
            self.wrong.append(f"stage {stage.name!r} was given a group of {len(items)}, and gathers {policy.count}")
        if policy.key is not None and len({policy.key(item) for item in items}) > 1:
            self.wrong.append(f"stage {stage.name!r} was given a group of several keys: {items!r}")
        if policy.sort is not None and items != sorted(items, key=policy.sort):
            self.wrong.append(f"stage {stage.name!r} was given a group that is not sorted: {items!r}")

    def _check_turn(self, stage: Stage, policy: InOrder[Any], item: Any) -> None:
        record = self.of[stage.name]
        key, index = policy.order(item)
        if policy.exclusive and stage.kind is NodeKind.STAGE:
            record.hands[key] += 1
            if record.hands[key] > 1:
                self.wrong.append(f"stage {stage.name!r} has two items of key {key!r} in hand, and is exclusive")
        if policy.exclusive or stage.workers == 1:  # otherwise the calls may overtake each other on their way here
            expected = record.next_index.get(key)
            if expected is not None and index != expected:
                self.wrong.append(f"stage {stage.name!r} was given item {index} of key {key!r} before {expected}")
            record.next_index[key] = index + 1

    # Faults.

    def disarm(self) -> None:
        """Let no INTERRUPT strike from now on; one that has struck is raised before this returns."""
        with self.lock:
            self.armed = False

    def strike(self, name: str, number: int, after: bool) -> None:
        """Let the faults of one call strike, those that let it go on first."""
        faults = [fault for fault in self._faults.get((name, number), ()) if fault.after == after]
        for fault in sorted(faults, key=lambda each: each.kind in STOPPING):
            self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        late = self.run is None or self.run.outcome is not None
        raised: dict[FaultKind, type[BaseException]] = {FaultKind.RAISE: InjectedFault, FaultKind.EXIT: SystemExit}
        error = raised[fault.kind](f"{fault.stage} {fault.at}") if fault.kind in raised else None
        with self.lock:
            if fault.kind is FaultKind.INTERRUPT and not self.armed:
                return  # there is no run any more that it could find
            self.fired.append(Fired(fault, late, time.monotonic(), error))
            if fault.kind is FaultKind.INTERRUPT:
                # To that very thread: a signal to the process may go to one that cannot wake it from its wait.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if error is not None:
            raise error
        if fault.kind is FaultKind.CANCEL and self.run is not None:
            self.run.cancel()
        elif fault.kind is FaultKind.KILL:
            self._kill(fault.amount)
        elif fault.kind is FaultKind.PAUSE and self.run is not None:
            self.run.pause()
            threading.Timer(fault.amount / 1000, self.run.resume).start()
        elif fault.kind is FaultKind.DELAY:
            time.sleep(fault.amount / 1000)
        elif fault.kind is FaultKind.HOLD:
            self._hold(int(fault.amount))

    def _kill(self, amount: float) -> None:
        worker = self.children[threading.current_thread()]
        pid = worker.pid
        if pid is not None:
            kill = threading.Timer(amount / 1000, worker.kill_process, (pid,))
            kill.start()
            if not amount:
                kill.join()

    def _hold(self, amount: int) -> None:
        with self.moved:
            self.holding += 1
            target = self.moves + amount
            while self.moves < target and self.moved.wait(NO_MOVE):
                pass
            self.holding -= 1


def wrap(graph: Graph, journal: Journal) -> Graph:
    """Return the graph with every function wrapped; sinks are the harness's to write down."""
    wrapped = Graph(graph.name)
    routes: dict[Route, Route] = {}
    for stage in graph.stages:
        changes: dict[str, Any] = {"via": tuple(_via(journal, via, routes) for via in stage.via)}
        if stage.when is not None:
            changes["when"] = _when(journal, stage.name, stage.when)
        if stage.kind is NodeKind.SOURCE:
            assert stage.fn is not None
            changes |= {"fn": _source(journal, stage, stage.fn), "closes": True}
        elif stage.kind is NodeKind.STAGE:
            assert stage.fn is not None
            fn = stage.fn
            changes["fn"] = _per_worker(journal, stage, fn) if isinstance(fn, PerWorker) else _call(journal, stage, fn)
        wrapped._add(replace(stage, **changes))
    return wrapped


def _when(journal: Journal, name: str, when: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def selected(item: Any) -> bool:
        chosen = when(item)
        journal.select(name, item, chosen)
        return chosen

    return selected


def _via(journal: Journal, via: Via, routes: dict[Route, Route]) -> Via:
    if not isinstance(via, Branch):
        return via
    route = via.route

    def key(item: Any) -> Hashable:
        chosen = route.key(item)
        journal.choose(Branch(route, chosen), item)
        return chosen

    if route not in routes:
        routes[route] = replace(route, key=key)
    return Branch(routes[route], via.key)


def _source(journal: Journal, stage: Stage, fn: Callable[..., Any]) -> Callable[[], Iterator[Any]]:
    def elements() -> Iterator[Any]:
        iterator = iter(fn())
        try:
            while True:
                number = journal.take_number(stage.name)
                journal.strike(stage.name, number, after=False)
                try:
                    element = next(iterator)
                except StopIteration:
                    return
                journal.strike(stage.name, number, after=True)
                journal.make(stage.name, element)
                yield element
        finally:
            if stage.closes and hasattr(iterator, "close"):
                iterator.close()

    return elements


def _call(journal: Journal, stage: Stage, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    name = stage.name

    def call(item: Any) -> Any:
        number = journal.take_number(name)
        journal.begin(name, item)
        try:
            journal.strike(name, number, after=False)
            result = fn(item)
            journal.strike(name, number, after=True)
        except BaseException:
            journal.end(name, item, error=True)
            raise
        if stage.expand:
            elements = _elements(journal, stage, item, result)
            # What was lazy stays so, and what was not: the engine closes and traces the two differently.
            return elements if hasattr(result, "__next__") else Elements(elements)
        journal.end(name, item, error=False)
        journal.make(name, result)
        return result

    return call


def _elements(journal: Journal, stage: Stage, item: Any, result: Iterable[Any]) -> Iterator[Any]:
    error, many = True, 0
    record = journal.of[stage.name]
    try:
        for element in result:
            many += 1
            record.most_made = max(record.most_made, many)
            journal.make(stage.name, element)
            yield element
        error = False
    finally:
        journal.end(stage.name, item, error)
        if hasattr(result, "close"):
            result.close()


class Elements:
    """An iterable that is not an iterator, as a list is."""

    def __init__(self, elements: Iterator[Any]) -> None:
        self._elements = elements

    def __iter__(self) -> Iterator[Any]:
        return self._elements


def _per_worker(journal: Journal, stage: Stage, fn: PerWorker[Any, Any]) -> PerWorker[Any, Any]:
    make = fn.make

    class Wrapped(AbstractContextManager[Callable[[Any], Any]]):
        def __init__(self) -> None:
            self.inner = make()

        def __enter__(self) -> Callable[[Any], Any]:
            entered = self.inner.__enter__()
            if isinstance(entered, ProcessWorker):
                journal.children[threading.current_thread()] = entered
            return _call(journal, stage, entered)

        def __exit__(self, *error: Any) -> None:
            self.inner.__exit__(*error)

    wrapped = copy(fn)  # what else it can do, such as aborting its processes, stays
    wrapped.make = Wrapped
    return wrapped
