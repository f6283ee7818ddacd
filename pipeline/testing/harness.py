"""Run a graph under a plan of faults, on the caller's thread, and check afterwards that everything held.

Guarantees: `exercise` returns within about `limit` seconds after the last thing that moved, hang or no hang; it leaves
signal handlers and the switch interval as they were. What it cannot end it reports.
"""

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from threadloom.pipeline.core import Label
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, RunStatistics, Trace
from threadloom.pipeline.run import Abortable, Run
from threadloom.pipeline.testing.faults import FaultKind, FaultPlan
from threadloom.pipeline.testing.invariants import Observation, broken_invariants
from threadloom.pipeline.testing.journal import Fired, Journal, wrap
from threadloom.pipeline.testing.leaks import ResourceSnapshot, left_behind


class InvariantBroken(AssertionError):
    """A run did not hold what the engine promises; the message says what, and how to run it again."""


@dataclass(frozen=True)
class Subject:
    """A graph to try, with what it needs and what is known of its outcome."""

    graph: Graph
    """The graph; one whose sources are functions can be tried again."""
    resources: Sequence[Abortable] = ()
    """What its workers wait on, as for `Graph.start`. Of a Pool everything must be back when a run ends well."""
    expected: Mapping[str, Iterable[Any]] | None = None
    """Sink → the items that come out of it, in any order: all in a run that ends well, some in one that is stopped."""
    ordered: frozenset[str] = frozenset()
    """Sinks whose items come in the very order of `expected`."""
    may_raise: tuple[type[BaseException], ...] = ()
    """Errors that the graph may end with on its own account."""
    label: Callable[[Any], Label] | None = None
    """As for `Graph.start`."""
    trace: Trace | None = None
    """As for `Graph.start`."""


@dataclass(frozen=True)
class FaultReport:
    """What one run under faults did."""

    plan: FaultPlan
    """What was to go wrong."""
    fired: tuple[Fired, ...]
    """What did, in order. A fault at a call that never came did not."""
    error: BaseException | None
    """What the `with` block raised."""
    delivered: Mapping[str, list[Any]]
    """Sink → what came out of it."""
    statistics: RunStatistics
    """As of the end of the run."""
    seconds: float
    """How long the run took, its end included."""
    broken: tuple[str, ...]
    """The invariants that did not hold, in words; empty if all is well."""

    def check(self, again: str = "") -> "FaultReport":
        """Raise InvariantBroken if something is broken, with `again` as the way to see it again; return the report."""
        if self.broken:
            listing = "\n".join(f"  - {each}" for each in self.broken)
            how = again or f"exercise(subject, {self.plan!r})"
            raise InvariantBroken(
                f"{len(self.broken)} invariant(s) of graph {self.statistics.graph!r} did not hold:\n{listing}\n"
                f"the run ended with {self.error!r}; faults that struck: {[each.fault for each in self.fired]}\n"
                f"again: {how}"
            ) from self.error
        return self


@dataclass
class _ObservedRun:
    """The state of one run while it is observed."""

    subject: Subject
    journal: Journal
    wrapped: Graph
    limit: float
    delivered: dict[str, list[Any]]
    ended: threading.Event = field(default_factory=threading.Event)
    hang: str | None = None
    odd: list[str] = field(default_factory=list)  # what the watcher saw

    def consume(self, run: Run, name: str) -> bool:
        """Take everything from a sink; return whether the caller is to leave before its end."""
        journal = self.journal
        for item in run.items(name):
            self.delivered[name].append(item)
            number = journal.take_number(name)
            journal.begin(name, item)
            struck = len(journal.fired)
            journal.strike(name, number, after=False)
            journal.strike(name, number, after=True)
            journal.end(name, item, error=False)
            if any(f.fault.kind is FaultKind.LEAVE and f.fault.stage == name for f in journal.fired[struck:]):
                return True
        return False

    def drive(self, run: Run) -> None:
        """Do what a caller does in the `with` block."""
        if len(self.delivered) == 1:
            if not self.consume(run, *self.delivered):
                run.statistics()
        elif not self.delivered:
            run.wait()
        else:
            self.drive_several(run)

    def drive_several(self, run: Run) -> None:
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
        """Read the statistics all the while, as a display would, and end a run in which nothing moves any more."""
        moves, since = -1, time.monotonic()
        while not self.ended.wait(0.005):
            run = self.journal.run
            if run is not None and self.hang is None:
                try:
                    run.statistics()
                except Exception as error:
                    self.odd.append(f"run.statistics() raised {error!r} while the run was on")
            if self.journal.moves != moves:
                moves, since = self.journal.moves, time.monotonic()
            elif time.monotonic() - since > self.limit and self.hang is None:
                self.hang = _stacks(self.wrapped.name)
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
    """Run a graph with the faults of a plan, and return what happened and which invariants did not hold.

    `limit` is how many seconds nothing may move before the run counts as hung, `prompt` how many it may take to end
    after the first fault that stops it, `grace` is that of `Graph.start`. Each call takes the faults' `amount` as it
    is: keep the delays small.
    """
    subject = subject if isinstance(subject, Subject) else Subject(subject)
    plan = FaultPlan() if plan is None else plan
    plan.check(subject.graph)
    interrupts = any(fault.kind is FaultKind.INTERRUPT for fault in plan.faults)
    if interrupts and threading.current_thread() is not threading.main_thread():
        raise ValueError("an INTERRUPT fault reaches the main thread alone: call exercise() there, or leave it out")
    journal = Journal(subject.graph, plan)
    sinks = [stage.name for stage in subject.graph.stages if stage.kind is NodeKind.SINK]
    attempt = _ObservedRun(subject, journal, wrap(subject.graph, journal), limit, {name: [] for name in sinks})
    before = ResourceSnapshot.now()
    handler = signal.getsignal(signal.SIGINT)
    interval = sys.getswitchinterval()

    def on_interrupt(number: int, frame: object) -> None:
        if journal.armed:
            raise KeyboardInterrupt

    watcher = threading.Thread(target=attempt.watch, name="watcher of faults", daemon=True)
    if interrupts:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        if plan.switch_interval is not None:
            sys.setswitchinterval(plan.switch_interval)
        watcher.start()
        began = time.monotonic()
        run, error, ended = _run(attempt, grace)
    finally:
        sys.setswitchinterval(interval)
        if interrupts:
            signal.signal(signal.SIGINT, handler)
        attempt.ended.set()
        watcher.join()
    leaks = left_behind(before)
    observation = Observation(
        journal, subject.graph, run.statistics(), error, attempt.hang, ended, subject.resources, leaks
    )
    problems = attempt.odd + broken_invariants(observation, subject, attempt.delivered, prompt)
    return FaultReport(
        plan, tuple(journal.fired), error, attempt.delivered, observation.statistics, ended - began, tuple(problems)
    )


def _run(attempt: _ObservedRun, grace: float) -> tuple[Run, BaseException | None, float]:
    """Do the run; return it with what it raised and when it ended."""
    subject, journal = attempt.subject, attempt.journal
    run = attempt.wrapped.start(resources=subject.resources, label=subject.label, trace=subject.trace, grace=grace)
    error: BaseException | None = None
    ended = 0.0
    try:
        journal.armed = True
        journal.run = run
        with run:
            attempt.drive(run)
        ended = time.monotonic()
        journal.disarm()  # a Ctrl-C that came at the very end strikes here
    except BaseException as raised:
        error = raised
        try:
            journal.disarm()
        except KeyboardInterrupt as interrupt:  # or here
            error = interrupt
    return run, error, ended or time.monotonic()


def _stacks(graph: str) -> str:
    frames = sys._current_frames()
    return "\n".join(
        f"thread {thread.name!r} is at:\n{''.join(traceback.format_stack(frames[thread.ident], limit=4))}"
        for thread in threading.enumerate()
        if thread.ident in frames and (thread.name.startswith(graph) or thread is threading.main_thread())
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
    """Try a graph of one's own under one random plan of faults a seed; raise InvariantBroken at the first that breaks.

        hammer(build_my_graph, range(200))

    `make` builds the graph anew for each seed; `kinds`, `calls` and `most` are those of `FaultPlan.random`. The error
    names the seed, and `hammer(build_my_graph, [seed])` runs it again.
    """
    reports = []
    for seed in seeds:
        made = make()
        subject = made if isinstance(made, Subject) else Subject(made)
        plan = FaultPlan.random(subject.graph, seed, calls=calls, most=most, kinds=frozenset(kinds))
        again = f"hammer({getattr(make, '__name__', make)}, [{seed}])"
        reports.append(exercise(subject, plan, limit=limit, prompt=prompt).check(again))
    return reports
