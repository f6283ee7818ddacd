"""Runs a graph under a plan of faults on the caller's thread, and checks the invariants afterwards.

Guarantees: `exercise` returns at most about `limit` seconds after the last event, even if the run hangs. It restores
signal handlers and the thread switch interval. Threads that it cannot end are reported.
"""

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from threadloom.pipeline.core import Label
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, RunStatistics, Stage, Trace
from threadloom.pipeline.policy import OnFailure
from threadloom.pipeline.run import Abortable, Run, RunSettings, stack_of
from threadloom.pipeline.testing.drained import broken_by_draining
from threadloom.pipeline.testing.faults import COLLECTED, FaultKind, FaultPlan
from threadloom.pipeline.testing.injection import FaultInjector, Fired
from threadloom.pipeline.testing.instrument import instrument
from threadloom.pipeline.testing.invariants import Observation, broken_invariants
from threadloom.pipeline.testing.journal import Journal
from threadloom.pipeline.testing.leaks import ResourceSnapshot, left_behind

COLLECT_AFTER = 20
"""Objects after which the garbage collector runs in a run with a fault that occurs in it: anywhere, and often."""


class InvariantBroken(AssertionError):
    """A run violated an invariant of the engine; the message lists the violations and how to repeat the run."""


@dataclass(frozen=True)
class Subject:
    """A graph under test, with its resources and its expected outcome."""

    graph: Graph
    """The graph. It can be tried several times if its sources are functions."""
    resources: Sequence[Abortable] = ()
    """The resources that its workers wait on, as for `Graph.start`. After a run without a failure, every element of a
    Pool must have been returned."""
    expected: Mapping[str, Iterable[Any]] | None = None
    """Sink → its items, in any order. A run without a failure delivers all of them, another some of them."""
    ordered: frozenset[str] = frozenset()
    """Sinks whose items arrive in the order of `expected`."""
    may_raise: tuple[type[BaseException], ...] = ()
    """Errors with which the graph may end without a fault."""
    label: Callable[[Any], Label] | None = None
    """As for `Graph.start`."""
    trace: Trace | None = None
    """As for `Graph.start`."""


@dataclass(frozen=True)
class FaultReport:
    """The result of one run under faults."""

    plan: FaultPlan
    """The planned faults."""
    fired: tuple[Fired, ...]
    """The faults that occurred, in order. A fault at a call that never came did not occur."""
    error: BaseException | None
    """The exception raised by the `with` block."""
    delivered: Mapping[str, list[Any]]
    """Sink → the items that it delivered."""
    statistics: RunStatistics
    """The statistics after the end of the run."""
    seconds: float
    """Duration of the run, its shutdown included."""
    broken: tuple[str, ...]
    """Descriptions of the violated invariants; empty if all hold."""

    def check(self, again: str = "") -> "FaultReport":
        """Return this report; raise InvariantBroken if an invariant is violated. `again`: code that repeats the run."""
        if self.broken:
            listing = "\n".join(f"  - {each}" for each in self.broken)
            how = again or f"exercise(subject, {self.plan!r})"
            raise InvariantBroken(
                f"{len(self.broken)} invariant(s) of graph {self.statistics.graph!r} violated:\n{listing}\n"
                f"the run ended with {self.error!r}; faults that occurred: {[each.fault for each in self.fired]}\n"
                f"repeat with: {how}"
            ) from self.error
        return self


@dataclass
class _ObservedRun:
    """The state of one run under observation."""

    name: str
    journal: Journal
    faults: FaultInjector
    limit: float
    delivered: dict[str, list[Any]]
    ended: threading.Event = field(default_factory=threading.Event)
    hang: str | None = None  # stacks of a run without events; set by the watcher thread only
    problems: list[str] = field(default_factory=list)  # found by the watcher thread

    def consume(self, run: Run, name: str) -> bool:
        """Take all items from a sink; return True if the caller leaves early because of a fault."""
        journal, faults = self.journal, self.faults
        for item in run.items(name):
            self.delivered[name].append(item)
            number = journal.next_call(name)
            journal.begin(name, item)
            before = len(faults.fired)
            faults.inject(name, number, after=False)
            faults.inject(name, number, after=True)
            journal.end(name, item, error=False)
            if any(f.fault.kind is FaultKind.LEAVE and f.fault.stage == name for f in faults.fired[before:]):
                return True
        return False

    def drive(self, run: Run) -> None:
        """Perform the caller's part in the `with` block."""
        if len(self.delivered) == 1:
            if not self.consume(run, *self.delivered):
                run.statistics()
        elif not self.delivered:
            run.wait()
        else:
            self.drive_several(run)

    def drive_several(self, run: Run) -> None:
        """Consume several sinks, one thread each, until all are exhausted or one consumer leaves or raises."""
        answers: SimpleQueue[BaseException | bool] = SimpleQueue()

        def consumer(name: str) -> None:
            try:
                answers.put(self.consume(run, name))
            except BaseException as error:
                answers.put(error)

        for name in self.delivered:
            threading.Thread(target=consumer, args=(name,), name=f"consumer of {name}", daemon=True).start()
        for _ in self.delivered:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer:
                return

    def watch(self) -> None:
        """Read the statistics repeatedly, as a display would, and cancel a run without events."""
        events, since = -1, time.monotonic()
        while not self.ended.wait(0.005):
            run = self.faults.run
            if run is not None and self.hang is None:
                try:
                    run.statistics()
                except Exception as error:
                    self.problems.append(f"run.statistics() raised {error!r} during the run")
            if self.journal.events != events:
                events, since = self.journal.events, time.monotonic()
            elif time.monotonic() - since > self.limit and self.hang is None:
                self.hang = _stacks(self.name)
                if run is not None:
                    run.cancel()


def exercise(
    subject: Subject | Graph,
    plan: FaultPlan | None = None,
    *,
    limit: float = 20.0,
    prompt: float = 2.0,
    grace: float = 5.0,
) -> FaultReport:
    """Run a graph under the faults of a plan; return a report with the violated invariants.

    `limit` is the time in seconds without an event after which the run counts as hung, `prompt` the time in seconds
    that it may take to end after the first fault that stops it, and `grace` that of `Graph.start`. Delays of the plan
    are not scaled: keep them small.
    """
    subject = subject if isinstance(subject, Subject) else Subject(subject)
    plan = FaultPlan() if plan is None else plan
    graph = subject.graph
    graph.check()
    plan.check(graph)
    interrupts = any(fault.kind is FaultKind.INTERRUPT for fault in plan.faults)
    if interrupts and threading.current_thread() is not threading.main_thread():
        raise ValueError("an INTERRUPT fault needs the main thread: call exercise() there, or leave the fault out")
    journal = Journal(graph)
    faults = FaultInjector(plan, journal)
    sinks = [stage.name for stage in graph.stages if stage.kind is NodeKind.SINK]
    observed = _ObservedRun(graph.name, journal, faults, limit, {name: [] for name in sinks})
    before = ResourceSnapshot.now()
    watcher = threading.Thread(target=observed.watch, name="fault watcher", daemon=True)
    with _process_settings(plan, faults, interrupts=interrupts):
        try:
            watcher.start()
            began = time.monotonic()
            run, error, ended = _run(observed, instrument(graph, journal, faults), subject, grace, plan.on_failure)
        finally:
            observed.ended.set()
            watcher.join()
    collect = any(fired.fault.kind in COLLECTED for fired in faults.fired)
    if collect:
        gc.collect()
    leaks = left_behind(before, collect=collect)
    observation = Observation(
        journal,
        tuple(faults.fired),
        graph,
        run.statistics(),
        error,
        observed.hang,
        ended,
        subject.resources,
        leaks,
        plan.on_failure,
    )
    problems = observed.problems + broken_invariants(observation, subject, observed.delivered, prompt)
    if plan.on_failure is OnFailure.DRAIN and observed.hang is None:
        ordered = {sink: items for sink, items in (subject.expected or {}).items() if sink in subject.ordered}
        problems += broken_by_draining(journal, observation.stoppers, error, ordered, observed.delivered)
    return FaultReport(
        plan, tuple(faults.fired), error, observed.delivered, observation.statistics, ended - began, tuple(problems)
    )


@contextmanager
def _process_settings(plan: FaultPlan, faults: FaultInjector, *, interrupts: bool) -> Iterator[None]:
    """Set the switch interval of the plan and a SIGINT handler that ignores a late INTERRUPT; restore both."""
    handler = signal.getsignal(signal.SIGINT)
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()

    def on_interrupt(number: int, frame: object) -> None:
        if faults.interruptible:
            raise KeyboardInterrupt

    try:
        if interrupts:
            signal.signal(signal.SIGINT, on_interrupt)
        if plan.switch_interval is not None:
            sys.setswitchinterval(plan.switch_interval)
        if any(fault.kind in COLLECTED for fault in plan.faults):
            gc.set_threshold(COLLECT_AFTER, 100, 1000)  # young objects only: a full collection takes long
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        if interrupts:
            signal.signal(signal.SIGINT, handler)


def _run(
    observed: _ObservedRun, stages: Sequence[Stage], subject: Subject, grace: float, on_failure: OnFailure
) -> tuple[Run, BaseException | None, float]:
    """Execute the run; return it with the exception of its `with` block and the time at which the block was left."""
    faults = observed.faults
    settings = RunSettings(subject.resources, subject.trace, subject.label, grace, on_failure)
    run = Run(observed.name, stages, settings)
    error: BaseException | None = None
    ended = 0.0
    try:
        faults.interruptible = True
        faults.run = run
        with run:
            observed.drive(run)
        ended = time.monotonic()
        faults.end_interrupts()  # a Ctrl-C at the very end is raised here
    except BaseException as raised:
        error = raised
        try:
            faults.end_interrupts()
        except KeyboardInterrupt as interrupt:  # or here
            error = interrupt
    return run, error, ended or time.monotonic()


def _stacks(graph: str) -> str:
    """Return the stacks of the main thread and of the threads of a graph's run."""
    return "\n".join(
        f"thread {thread.name!r} is at:\n{stack_of(thread, frames=4)}"
        for thread in threading.enumerate()
        if thread.name.startswith(graph) or thread is threading.main_thread()
    )


def hammer(
    make: Callable[[], Subject | Graph],
    seeds: Iterable[int],
    *,
    kinds: Iterable[FaultKind] = frozenset(FaultKind),
    calls: int = 40,
    most: int = 4,
    limit: float = 20.0,
    prompt: float = 2.0,
) -> list[FaultReport]:
    """Run a graph under one random fault plan per seed; raise InvariantBroken at the first violation.

        hammer(build_my_graph, range(200))

    `make` builds a new graph for each seed; `kinds`, `calls` and `most` are those of `FaultPlan.random`. The error
    names the seed, and `hammer(build_my_graph, [seed])` repeats its run.
    """
    reports = []
    for seed in seeds:
        made = make()
        subject = made if isinstance(made, Subject) else Subject(made)
        plan = FaultPlan.random(subject.graph, seed, calls=calls, most=most, kinds=frozenset(kinds))
        again = f"hammer({getattr(make, '__name__', make)}, [{seed}])"
        reports.append(exercise(subject, plan, limit=limit, prompt=prompt).check(again))
    return reports
