"""The invariants that must hold after a run with any faults.

All functions are pure functions of an `Observation`; `broken_invariants` returns descriptions of the violations. A run
*succeeded* if it raised nothing and no fault that stops a run occurred before its end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from threadloom.pipeline.core import AdmissionError, Cancelled, Pool, StageFailure, TooManySkipped
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, Port, RunStatistics, Stage
from threadloom.pipeline.policy import FailFast, Fifo, Gather, InOrder, Join, OnFailure, Priority
from threadloom.pipeline.processes import OnProcesses, WorkerDied
from threadloom.pipeline.testing.faults import STOPPING, FaultKind
from threadloom.pipeline.testing.injection import Fired
from threadloom.pipeline.testing.journal import Journal, NodeRecord


class Expected(Protocol):
    """The expected outcome of a subject."""

    @property
    def expected(self) -> Mapping[str, Iterable[Any]] | None: ...
    @property
    def ordered(self) -> frozenset[str]: ...
    @property
    def may_raise(self) -> tuple[type[BaseException], ...]: ...


@dataclass(frozen=True)
class Observation:
    """The observations of a run that has ended."""

    journal: Journal
    fired: Sequence[Fired]
    graph: Graph
    statistics: RunStatistics
    error: BaseException | None
    hang: str | None  # the stacks of a run without events
    ended: float  # time.monotonic() when its `with` block was left
    resources: Sequence[object]
    leaks: Mapping[str, list[str]]
    on_failure: OnFailure = OnFailure.STOP

    @property
    def stoppers(self) -> list[Fired]:
        """The faults that had to stop the run and occurred before its outcome was decided."""
        return [fired for fired in self.fired if not fired.late and self._must_stop(fired)]

    def _must_stop(self, fired: Fired) -> bool:
        if fired.fault.kind is FaultKind.RAISE:  # other policies may skip the item, or retry
            return isinstance(self.journal.stages[fired.fault.stage].on_error, FailFast)
        return fired.fault.kind in STOPPING

    @property
    def discarded(self) -> bool:
        """True if a failure may have made a stage discard its input, so that more items were sent to it."""
        return self.on_failure is OnFailure.DRAIN and bool(self.stoppers)

    @property
    def drained(self) -> bool:
        """True if the sources may have ended early."""
        return any(fired.fault.kind is FaultKind.DRAIN for fired in self.fired)

    def workers(self, stage: Stage) -> int:
        """Return the largest number of workers that a stage has had at once."""
        resized = (fired.fault for fired in self.fired if fired.fault.kind is FaultKind.RESIZE)
        workers = max([stage.workers, *(int(fault.amount) for fault in resized if fault.stage == stage.name)])
        return replace(stage, workers=workers).threads

    @property
    def succeeded(self) -> bool:
        """True if the run raised nothing and no fault had to stop it."""
        return self.error is None and not self.stoppers


def broken_invariants(
    seen: Observation, subject: Expected, delivered: Mapping[str, list[Any]], prompt: float
) -> list[str]:
    """Return descriptions of the violated invariants."""
    if seen.hang is not None:
        return [f"no progress, and the run did not end:\n{seen.hang}"]
    problems = list(seen.journal.problems)
    problems += [f"left behind: a {sort}: {name}" for sort, names in seen.leaks.items() for name in names]
    problems += _outcome(seen, subject, prompt)
    for stage in seen.graph.stages:
        if seen.succeeded and stage.kind is NodeKind.STAGE and _all_given_up(seen, stage):
            problems.append(f"every item of {stage.name!r} was skipped, and the run did not fail")
        problems += _delivery(seen, stage)
        problems += _order(seen, stage)
        problems += _counters(seen, stage)
    problems += _model(seen, subject, delivered)
    if seen.succeeded:
        lent = [each.statistics().lent for each in seen.resources if isinstance(each, Pool)]
        problems += [f"{each} element(s) of a pool were not returned" for each in lent if each]
    return problems


def _outcome(seen: Observation, subject: Expected, prompt: float) -> Iterator[str]:
    """Check that the caller gets the first error, and only that, promptly."""
    error, stoppers = seen.error, seen.stoppers
    kinds = {fired.fault.kind for fired in stoppers}
    sinks = {stage.name for stage in seen.graph.stages if stage.kind is NodeKind.SINK}
    occurred = ", ".join(str(fired.fault) for fired in stoppers) or "nothing"
    if FaultKind.INTERRUPT in {fired.fault.kind for fired in seen.fired}:
        if not isinstance(error, KeyboardInterrupt):
            yield f"Ctrl-C was pressed, but the caller got {error!r}"
    elif error is None:
        left = any(fired.fault.kind is FaultKind.LEAVE for fired in seen.fired)
        if stoppers and not left:
            yield f"the caller got no error, although these faults occurred: {occurred}"
    elif isinstance(error, StageFailure):
        cause = error.__cause__
        match = [fired for fired in seen.fired if fired.error is not None and fired.error is cause]
        if match and match[0].late:
            yield f"the caller got {error!r}, a consequence: the run had already ended. First faults: {occurred}"
        elif match and match[0].fault.stage != error.stage:
            yield f"an error of stage {match[0].fault.stage!r} was reported as an error of {error.stage!r}"
        elif not match and not isinstance(cause, _expected_errors(seen, subject)) and not _explained(seen, error):
            yield f"the caller got {error!r}, which no fault caused. Faults: {occurred}"
    elif isinstance(error, Cancelled):
        if FaultKind.CANCEL not in kinds:
            yield f"the caller got Cancelled without a CANCEL fault. Faults: {occurred}"
    elif not any(fired.error is error and fired.fault.stage in sinks for fired in seen.fired):
        yield f"the caller got {error!r}, which no fault caused. Faults: {occurred}"
    if stoppers and (late := seen.ended - min(fired.when for fired in stoppers)) > prompt:
        yield f"the run ended {late:.2f} s after the first of these faults: {occurred}; {prompt:g} s are allowed"


def _expected_errors(seen: Observation, subject: Expected) -> tuple[type[BaseException], ...]:
    """Return the errors with which the run may end without a fault that stops it.

    Sources that have ended early leave gaps and incomplete groups.
    """
    return (*subject.may_raise, AdmissionError) if seen.drained else subject.may_raise


def _explained(seen: Observation, error: StageFailure) -> bool:
    """Return True if the stage failed because a process of it was killed, or because all of its items were skipped."""
    if isinstance(error.__cause__, TooManySkipped):
        return _all_given_up(seen, seen.journal.stages[error.stage])
    killed = {fired.fault.stage for fired in seen.fired if fired.fault.kind is FaultKind.KILL}
    return isinstance(error.__cause__, WorkerDied) and error.stage in killed


def _all_given_up(seen: Observation, stage: Stage) -> bool:
    record = seen.journal.of[stage.name]
    emitted = record.emitted if stage.kind is NodeKind.SOURCE else record.returned
    return record.given_up > 0 and not emitted


def _identities(items: Iterable[Any]) -> Counter[int]:
    return Counter(map(id, items))


def _delivery(seen: Observation, stage: Stage) -> Iterator[str]:
    """Check that each item sent to a stage is begun once; in a stopped run, at most once."""
    record = seen.journal.of[stage.name]
    if Port.LETTERS in stage.via:
        letters = sum(seen.journal.of[name].given_up for name in stage.after)
        if len(record.begun) > letters or (seen.succeeded and len(record.begun) < letters):
            yield f"{stage.name!r} got {len(record.begun)} dead letters, but {letters} items were given up"
        return
    arrived, begun = _identities(record.arrived), _identities(record.begun)
    names = {id(item): item for item in (*record.arrived, *record.begun)}
    if excess := begun - arrived:
        listing = ", ".join(repr(names[each]) for each in list(excess)[:5])
        yield f"{stage.name!r} got {excess.total()} item(s) that were not sent to it, or more than once: {listing}"
    unmatched = isinstance(stage.admission, Join) and stage.admission.drop_unmatched
    if seen.succeeded and stage.kind is not NodeKind.SOURCE and not unmatched and (lost := arrived - begun):
        listing = ", ".join(repr(names[each]) for each in list(lost)[:5])
        yield f"{lost.total()} item(s) sent to {stage.name!r} did not arrive: {listing}"
    bound = transit_bound(seen, stage)
    if record.most_in_transit > bound and not seen.discarded:
        yield f"{record.most_in_transit} items were in transit to {stage.name!r} at once; the bound is {bound}"
    ends = record.returned + record.given_up
    if seen.succeeded and len(record.groups or record.begun) != ends and stage.kind is not NodeKind.SOURCE:
        yield f"{stage.name!r} began {len(record.groups or record.begun)} items and ended {ends}"


def _order(seen: Observation, stage: Stage) -> Iterator[str]:
    """Check that items of one worker leave a FIFO channel in the order of sending, if their calls cannot overtake."""
    record, stages = seen.journal.of[stage.name], seen.journal.stages
    if not isinstance(stage.admission, Fifo) or stage.threads > 1 or len(stage.after) != 1:
        return
    if stage.kind is NodeKind.STAGE and stage.after[0] not in stages:
        return
    sent_by = seen.journal.of[stage.after[0]].by_worker.values()
    place = {id(item): number for number, item in enumerate(record.begun)}
    all_sent = [id(item) for sent in sent_by for item in sent]
    if len(place) != len(record.begun) or len(set(all_sent)) != len(all_sent):
        return  # the same object was sent several times: its occurrences cannot be distinguished
    for sent in sent_by:
        places = [place[id(item)] for item in sent if id(item) in place]
        if places != sorted(places):
            yield f"{stage.name!r} did not get the items of a worker of {stage.after[0]!r} in the order of sending"
            return


def _counters(seen: Observation, stage: Stage) -> Iterator[str]:
    """Check the engine's statistics against the journal."""
    record, counted = seen.journal.of[stage.name], seen.statistics[stage.name]
    name, workers = stage.name, seen.workers(stage)
    begun = 0 if stage.kind is NodeKind.SOURCE else len(record.groups) if stage.gathers else len(record.begun)
    # An interrupt may reach the caller between the arrival of an item and its entry in the journal.
    slack = 1 if stage.kind is NodeKind.SINK and isinstance(seen.error, KeyboardInterrupt) else 0
    # A stopped run cancels coroutines that have not begun; their workers have counted the items.
    unbegun = workers if stage.concurrency is not None and not seen.succeeded else 0
    if not begun - slack <= counted.items_in <= begun + slack + unbegun:
        yield f"the statistics of {name!r} count {counted.items_in} items in; the journal has {begun}"
    out = record.returned if stage.kind is NodeKind.SINK else record.emitted
    least = out if seen.succeeded else max(0, out - unsent_bound(seen, stage))
    if not least - slack <= counted.items_out <= out + slack:
        yield f"the statistics of {name!r} count {counted.items_out} items out; the journal has {out}"
    # The three times of each worker add up to its lifetime, those of a sink to the caller's; both are within the run.
    total = counted.busy + counted.waiting + counted.blocked
    most = workers * seen.statistics.elapsed + 1e-3
    if min(counted.busy, counted.waiting, counted.blocked) < 0 or total > most:
        yield f"the times of {name!r} exceed the duration of the run: {counted}, {seen.statistics.elapsed} s"
    if seen.succeeded and (counted.skipped, counted.retried) != (record.given_up, record.retried):
        yield (
            f"the statistics of {name!r} count {counted.skipped} skipped items and {counted.retried} repeated calls; "
            f"the journal has {record.given_up} and {record.retried}"
        )
    channel = counted.channel
    if channel is None or Port.LETTERS in stage.via:
        return
    sent = len(record.arrived)
    if not len(record.begun) <= channel.items + slack or channel.items > sent:
        yield f"the channel of {name!r} counts {channel.items} items; {sent} were sent and {len(record.begun)} begun"
    if seen.succeeded and (channel.items != sent or channel.depth):
        yield f"the channel of {name!r} counts {channel.items} of {sent} items, and holds {channel.depth} at the end"
    if (bound := depth_bound(stage, record)) is not None and channel.max_depth > bound:
        yield f"the channel of {name!r} reached a depth of {channel.max_depth}; the bound is {bound}"


def _model(seen: Observation, subject: Expected, delivered: Mapping[str, list[Any]]) -> Iterator[str]:
    """Check the delivered items against the expected ones."""
    for sink, items in (subject.expected or {}).items():
        wanted, got = list(items), delivered[sink]
        excess = Counter(got) - Counter(wanted)
        missing = Counter(wanted) - Counter(got)
        if excess:
            yield f"sink {sink!r} delivered unexpected items: {dict(excess.most_common(5))}"
        given_up = seen.drained or any(record.given_up for record in seen.journal.of.values())
        if seen.succeeded and missing and not given_up:
            yield f"sink {sink!r} did not deliver {dict(missing.most_common(5))}"
        places = {item: place for place, item in enumerate(wanted)}
        if sink in subject.ordered and not excess and sorted(got, key=places.__getitem__) != got:
            yield f"sink {sink!r} delivered out of order: {got}"


def depth_bound(stage: Stage, record: NodeRecord) -> int | None:
    """Return the largest allowed depth of a node's input channel; None for a user-defined policy."""
    policy = stage.admission
    if isinstance(policy, (Fifo, Priority)):
        return stage.capacity
    if isinstance(policy, (InOrder, Gather)):
        return stage.capacity + len(record.keys)
    if isinstance(policy, Join):
        return stage.capacity * (1 + len(policy.inputs))
    return None


def unsent_bound(seen: Observation, stage: Stage) -> int:
    """Return the largest number of results of a node that may exist without having been sent."""
    record, workers = seen.journal.of[stage.name], seen.workers(stage)
    drained = seen.on_failure is OnFailure.DRAIN and stage.kind is NodeKind.STAGE and workers > 1
    if stage.ordered or drained:
        return (workers + stage.capacity) * record.most_emitted
    # Under a failure policy, an expansion is evaluated completely before its first element is sent.
    return workers * (1 if isinstance(stage.on_error, FailFast) else record.most_emitted)


def transit_bound(seen: Observation, stage: Stage) -> int:
    """Return the largest number of items that may have been sent to a node and not begun.

    The bound of its channel, the items that its workers have taken (a chunk each), and the unsent results of its
    predecessors.
    """
    journal = seen.journal
    record, policy = journal.of[stage.name], stage.admission
    depth = depth_bound(stage, record)
    each = policy.count if isinstance(policy, Gather) else len(policy.inputs) if isinstance(policy, Join) else 1
    unsent = sum(unsent_bound(seen, journal.stages[name]) for name in stage.after)
    chunk = stage.fn.chunk if isinstance(stage.fn, OnProcesses) else 1
    return len(record.arrived) if depth is None else (depth + seen.workers(stage) * chunk) * each + unsent
