"""The record of the events of one run, as reported by wrapped stage functions, and checks while they happen.

Guarantees: every call of a source, a stage, a `when`, a route's key function and a sink's consumer is recorded,
independently of the engine's counters. Items are identified by `id`, and the journal keeps all of them alive for that.

Ownership: every field is guarded by `lock`.
"""

import threading
from collections import Counter, defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import SKIP, Branch, NodeKind, Port, Stage
from threadloom.pipeline.policy import Gather, InOrder

QUIET = 0.004
"""Seconds without an event after which `await_events` assumes that no further event will occur."""

CALLER: ContextVar[threading.Thread] = ContextVar("CALLER")
"""The thread of the worker whose item a task processes, in tasks of event loops."""


def caller() -> threading.Thread:
    """Return the thread of the calling worker, also on an event loop that several workers share."""
    return CALLER.get(threading.current_thread())


@dataclass
class NodeRecord:
    """The record of one node, from the calls of its function."""

    begun: list[Any] = field(default_factory=list)  # items in order of the calls; the items of a group one by one
    groups: list[int] = field(default_factory=list)  # group sizes, for a gathering stage or a join
    by_worker: dict[object, list[Any]] = field(default_factory=lambda: defaultdict(list))  # results of each thread
    emitted: int = 0  # results and elements other than SKIP
    most_emitted: int = 1  # the largest number of them from one call
    returned: int = 0  # calls that returned
    raised: int = 0  # calls that raised, or whose elements were not all requested
    retried: int = 0  # calls with the item with which the same thread's last call failed
    failed_with: dict[object, Any] = field(default_factory=dict)
    calls: int = 0  # calls of a stage or sink, or elements requested from a source; `Fault.at` is an index into them
    arrived: list[Any] = field(default_factory=list)  # items sent to this node, by all its predecessors
    in_transit: int = 0  # items sent to this node and not begun
    most_in_transit: int = 0
    keys: set[Any] = field(default_factory=set)  # keys of the admission policy that arrived
    in_hand: Counter[Any] = field(default_factory=Counter)  # items being processed by key, for an exclusive InOrder
    next_index: dict[Any, int] = field(default_factory=dict)  # key → expected index, for an InOrder

    @property
    def given_up(self) -> int:
        """Items that failed for good: skipped by a policy, or by the end of the run."""
        return self.raised - self.retried


class Journal:
    """The records of one run."""

    def __init__(self, graph: Graph) -> None:
        self.lock = threading.RLock()  # reentrant: collecting a generator may end a call while the lock is held
        self.problems: list[str] = []
        """Violations seen while the run was in progress."""
        self.events = 0
        """Number of events of any kind."""
        self.stages = {stage.name: stage for stage in graph.stages}
        self.of = {name: NodeRecord() for name in self.stages}
        self._event = threading.Condition(self.lock)
        self._awaiting = 0  # threads in `await_events`
        # Node → the successors that every result goes to, once for each edge.
        self._successors: dict[str, list[Stage]] = {name: [] for name in self.stages}
        self._branches: dict[Branch, Stage] = {}
        for stage in graph.stages:
            for name, via in stage.inputs():
                if isinstance(via, Branch):
                    self._branches[via] = stage
                elif stage.when is None and via is Port.RESULTS:
                    self._successors[name].append(stage)

    def next_call(self, name: str) -> int:
        """Return the index of a new call of a node."""
        with self.lock:
            number = self.of[name].calls
            self.of[name].calls += 1
            return number

    def begin(self, name: str, item: Any) -> None:
        """Record that a node was called with an item or a group."""
        stage, record = self.stages[name], self.of[name]
        items = list(item) if stage.gathers else [item]
        with self.lock:
            self._add_event()
            if record.failed_with.pop(caller(), items) is item:
                record.retried += 1
                return
            record.begun.extend(items)
            record.in_transit -= len(items)
            if stage.gathers:
                record.groups.append(len(items))
                self._check_group(stage, items)
            if isinstance(stage.admission, InOrder):
                self._check_order(stage, stage.admission, item)

    def end(self, name: str, item: Any, *, error: bool) -> None:
        """Record the end of the call that `begin` recorded."""
        stage, record = self.stages[name], self.of[name]
        with self.lock:
            self._add_event()
            if error:
                record.raised += 1
                record.failed_with[caller()] = item
            else:
                record.returned += 1
            if isinstance(stage.admission, InOrder) and stage.admission.exclusive and not error:
                record.in_hand[stage.admission.order(item)[0]] -= 1

    def fail_element(self, name: str) -> None:
        """Record that the iterator of a source raised an error other than its end."""
        with self.lock:
            self._add_event()
            self.of[name].raised += 1

    def emit(self, name: str, result: Any) -> None:
        """Record a result, just before the engine sends it."""
        if result is SKIP:
            return
        with self.lock:
            self._add_event()
            record = self.of[name]
            record.emitted += 1
            record.by_worker[caller()].append(result)
            for successor in self._successors[name]:
                self._arrive(successor, result)

    def select(self, name: str, item: Any, *, accepted: bool) -> None:
        """Record the result of a node's `when`."""
        if accepted:
            with self.lock:
                self._add_event()
                self._arrive(self.stages[name], item)

    def choose(self, branch: Branch, item: Any) -> None:
        """Record the branch that a route chose for an item."""
        if branch in self._branches:
            with self.lock:
                self._add_event()
                self._arrive(self._branches[branch], item)

    def await_events(self, count: int) -> None:
        """Wait for `count` further events, or until no event occurs for QUIET seconds."""
        with self._event:
            self._awaiting += 1
            target = self.events + count
            while self.events < target and self._event.wait(QUIET):
                pass
            self._awaiting -= 1

    def _add_event(self) -> None:
        self.events += 1
        if self._awaiting:
            self._event.notify_all()

    def _arrive(self, stage: Stage, item: Any) -> None:
        record, policy = self.of[stage.name], stage.admission
        record.arrived.append(item)
        record.in_transit += 1
        record.most_in_transit = max(record.most_in_transit, record.in_transit)
        if isinstance(policy, InOrder):
            record.keys.add(policy.order(item)[0])
        elif isinstance(policy, Gather):
            record.keys.add(None if policy.key is None else policy.key(item))

    def _check_group(self, stage: Stage, items: list[Any]) -> None:
        policy = stage.admission
        if not isinstance(policy, Gather):
            return
        if not items or len(items) > policy.count or (len(items) < policy.count and not policy.partial):
            self.problems.append(f"stage {stage.name!r} gathers {policy.count} items, and got a group of {len(items)}")
        if policy.key is not None and len({policy.key(item) for item in items}) > 1:
            self.problems.append(f"stage {stage.name!r} got a group with several keys: {items!r}")
        if policy.sort is not None and items != sorted(items, key=policy.sort):
            self.problems.append(f"stage {stage.name!r} got a group that is not sorted: {items!r}")

    def _check_order(self, stage: Stage, policy: InOrder[Any], item: Any) -> None:
        record = self.of[stage.name]
        key, index = policy.order(item)
        if policy.exclusive and stage.kind is NodeKind.STAGE:
            record.in_hand[key] += 1
            if record.in_hand[key] > 1:
                self.problems.append(f"stage {stage.name!r} is exclusive, and processes two items of key {key!r}")
        if policy.exclusive or stage.threads == 1:  # otherwise one call may overtake another on its way here
            expected = record.next_index.get(key)
            if expected is not None and index != expected:
                self.problems.append(f"stage {stage.name!r} got item {index} of key {key!r} before item {expected}")
            record.next_index[key] = index + 1
