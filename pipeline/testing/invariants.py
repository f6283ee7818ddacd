"""What must hold when a run has ended, whatever went wrong in it.

Pure functions of what was observed: `broken` returns in words what does not hold. In these words, a run *ended well*
if nothing that stops a run struck it before its end, and it raised nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from threadloom.pipeline.core import Cancelled, Pool, StageFailure
from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, Port, RunStatistics, Stage
from threadloom.pipeline.policy import FailFast, Fifo, Gather, InOrder, Join
from threadloom.pipeline.processes import WorkerDied
from threadloom.pipeline.testing.faults import STOPPING, FaultKind
from threadloom.pipeline.testing.journal import Fired, Journal, NodeRecord


class Expected(Protocol):
    """What is known beforehand of a subject's outcome."""

    @property
    def expected(self) -> Mapping[str, Iterable[Any]] | None: ...
    @property
    def ordered(self) -> frozenset[str]: ...
    @property
    def may_raise(self) -> tuple[type[BaseException], ...]: ...


@dataclass(frozen=True)
class Observation:
    """All that is known of a run that has ended."""

    journal: Journal
    graph: Graph
    statistics: RunStatistics
    error: BaseException | None
    hang: str | None  # the stacks of a run in which nothing moved any more
    ended: float  # time.monotonic() when its `with` block was left
    resources: Sequence[object]
    leaks: Mapping[str, list[str]]

    @property
    def stoppers(self) -> list[Fired]:
        """What struck to stop the run, before its outcome was decided."""
        return [fired for fired in self.journal.fired if not fired.late and self._must_stop(fired)]

    def _must_stop(self, fired: Fired) -> bool:
        if fired.fault.kind is FaultKind.RAISE:
            return isinstance(
                self.journal.stages[fired.fault.stage].on_error, FailFast
            )  # others may skip, or try again
        return fired.fault.kind in STOPPING

    @property
    def ended_well(self) -> bool:
        return self.error is None and not self.stoppers


def broken_invariants(
    seen: Observation, subject: Expected, delivered: Mapping[str, list[Any]], prompt: float
) -> list[str]:
    """Return the invariants that do not hold."""
    if seen.hang is not None:
        return [f"nothing moved any more, and the run did not end:\n{seen.hang}"]
    problems = list(seen.journal.wrong)
    problems += [f"left behind: a {sort}: {name}" for sort, names in seen.leaks.items() for name in names]
    problems += _outcome(seen, subject, prompt)
    for stage in seen.graph.stages:
        problems += _delivery(seen, stage)
        problems += _order(seen, stage)
        problems += _counted(seen, stage)
    problems += _model(seen, subject, delivered)
    if seen.ended_well:
        lent = [each.statistics().lent for each in seen.resources if isinstance(each, Pool)]
        problems += [f"{each} element(s) of a pool were not given back" for each in lent if each]
    return problems


def _outcome(seen: Observation, subject: Expected, prompt: float) -> Iterator[str]:
    """The first error, and only that, reaches the caller, and soon."""
    error, stoppers = seen.error, seen.stoppers
    kinds = {fired.fault.kind for fired in stoppers}
    sinks = {stage.name for stage in seen.graph.stages if stage.kind is NodeKind.SINK}
    struck = ", ".join(str(fired.fault) for fired in stoppers) or "nothing"
    if FaultKind.INTERRUPT in {fired.fault.kind for fired in seen.journal.fired}:
        if not isinstance(error, KeyboardInterrupt):
            yield f"Ctrl-C was pressed, and the caller got {error!r}"
    elif error is None:
        left = any(fired.fault.kind is FaultKind.LEAVE for fired in seen.journal.fired)
        if stoppers and not left:
            yield f"the caller was told nothing, although this struck: {struck}"
    elif isinstance(error, StageFailure):
        cause = error.__cause__
        match = [fired for fired in seen.journal.fired if fired.error is not None and fired.error is cause]
        if match and match[0].late:
            yield f"the caller was given {error!r}, a consequence: the run had ended before. First struck: {struck}"
        elif match and match[0].fault.stage != error.stage:
            yield f"an error of stage {match[0].fault.stage!r} was reported as one of {error.stage!r}"
        elif not match and not isinstance(cause, subject.may_raise) and not _killed(seen, error):
            yield f"the caller was given {error!r}, which no fault made. Struck: {struck}"
    elif isinstance(error, Cancelled):
        if FaultKind.CANCEL not in kinds:
            yield f"the caller was told that the run was cancelled, and nobody did. Struck: {struck}"
    elif not any(fired.error is error and fired.fault.stage in sinks for fired in seen.journal.fired):
        yield f"the caller got {error!r}, which no fault made. Struck: {struck}"
    if stoppers and (late := seen.ended - min(fired.when for fired in stoppers)) > prompt:
        yield f"the run took {late:.2f} s to end after the first of: {struck}; {prompt:g} s are allowed"


def _killed(seen: Observation, error: StageFailure) -> bool:
    """Whether a stage failed because a process of it was killed."""
    killed = {fired.fault.stage for fired in seen.journal.fired if fired.fault.kind is FaultKind.KILL}
    return isinstance(error.__cause__, WorkerDied) and error.stage in killed


def _identities(items: Iterable[Any]) -> Counter[int]:
    return Counter(map(id, items))


def _delivery(seen: Observation, stage: Stage) -> Iterator[str]:
    """Each item that was sent to a stage is begun once; where the run was stopped, at most once."""
    record = seen.journal.of[stage.name]
    if Port.LETTERS in stage.via:
        letters = sum(seen.journal.of[name].given_up for name in stage.after)
        if len(record.begun) > letters or (seen.ended_well and len(record.begun) < letters):
            yield f"{stage.name!r} was given {len(record.begun)} dead letters, and {letters} items were given up"
        return
    arrived, begun = _identities(record.arrived), _identities(record.begun)
    names = {id(item): item for item in (*record.arrived, *record.begun)}
    if more := begun - arrived:
        listing = ", ".join(repr(names[each]) for each in list(more)[:5])
        yield f"{stage.name!r} was given {more.total()} item(s) that were not sent to it, or more than once: {listing}"
    unmatched = isinstance(stage.admission, Join) and stage.admission.drop_unmatched
    if seen.ended_well and stage.kind is not NodeKind.SOURCE and not unmatched and (lost := arrived - begun):
        listing = ", ".join(repr(names[each]) for each in list(lost)[:5])
        yield f"{lost.total()} item(s) sent to {stage.name!r} never came there: {listing}"
    bound = between_bound(stage, seen.journal)
    if record.most_between > bound:
        yield f"{record.most_between} items were on their way to {stage.name!r} at once; its bound is {bound}"
    ends = record.returned + record.given_up
    if seen.ended_well and len(record.groups or record.begun) != ends and stage.kind is not NodeKind.SOURCE:
        yield f"{stage.name!r} began {len(record.groups or record.begun)} items and ended {ends}"


def _order(seen: Observation, stage: Stage) -> Iterator[str]:
    """What one worker sent to a queue is taken in that order; judged where the calls cannot overtake each other."""
    record, stages = seen.journal.of[stage.name], seen.journal.stages
    if not isinstance(stage.admission, Fifo) or stage.workers > 1 or len(stage.after) != 1:
        return
    if stage.kind is NodeKind.STAGE and stage.after[0] not in stages:
        return
    place = {id(item): number for number, item in enumerate(record.begun)}
    if len(place) != len(record.begun):
        return  # the same object several times: which is which cannot be told
    for sent in seen.journal.of[stage.after[0]].by_worker.values():
        if len(set(map(id, sent))) != len(sent):
            continue  # likewise, where a run was stopped between the two
        places = [place[id(item)] for item in sent if id(item) in place]
        if places != sorted(places):
            yield f"{stage.name!r} was not given the items of a worker of {stage.after[0]!r} in the order of sending"
            return


def _counted(seen: Observation, stage: Stage) -> Iterator[str]:
    """The engine's statistics say what was seen from outside."""
    record, counted = seen.journal.of[stage.name], seen.statistics[stage.name]
    name, workers = stage.name, stage.workers
    begun = 0 if stage.kind is NodeKind.SOURCE else len(record.groups) if stage.gathers else len(record.begun)
    # An interrupt may hit the caller between an item's arrival and our writing it down.
    slack = 1 if stage.kind is NodeKind.SINK and isinstance(seen.error, KeyboardInterrupt) else 0
    if abs(counted.items_in - begun) > slack:
        yield f"the statistics of {name!r} count {counted.items_in} items in, and there were {begun}"
    out = record.returned if stage.kind is NodeKind.SINK else record.made
    least = out if seen.ended_well else max(0, out - hand_bound(stage, record))
    if not least - slack <= counted.items_out <= out + slack:
        yield f"the statistics of {name!r} count {counted.items_out} items out, and there were {out}"
    # Each worker's three times add up to its life, and a sink's to the caller's; both lie within the run.
    total = counted.busy + counted.waiting + counted.blocked
    most = workers * seen.statistics.elapsed + 1e-3
    if min(counted.busy, counted.waiting, counted.blocked) < 0 or total > most:
        yield f"the times of {name!r} do not fit into the run: {counted}, {seen.statistics.elapsed} s"
    if seen.ended_well and (counted.skipped, counted.retried) != (record.given_up, record.retried):
        yield (
            f"the statistics of {name!r} count {counted.skipped} items skipped and {counted.retried} calls repeated; "
            f"there were {record.given_up} and {record.retried}"
        )
    channel = counted.channel
    if channel is None or Port.LETTERS in stage.via:
        return
    sent = len(record.arrived)
    if not len(record.begun) <= channel.items + slack or channel.items > sent:
        yield f"the channel of {name!r} counts {channel.items} items; {sent} were sent and {len(record.begun)} came"
    if seen.ended_well and (channel.items != sent or channel.depth):
        yield f"the channel of {name!r} counts {channel.items} items of {sent}, and holds {channel.depth} at the end"
    if (bound := waiting_bound(stage, record)) is not None and channel.max_depth > bound:
        yield f"the channel of {name!r} was {channel.max_depth} deep; its bound is {bound}"


def _model(seen: Observation, subject: Expected, delivered: Mapping[str, list[Any]]) -> Iterator[str]:
    """What comes out is what was said to."""
    for sink, items in (subject.expected or {}).items():
        wanted, got = list(items), delivered[sink]
        more = Counter(got) - Counter(wanted)
        less = Counter(wanted) - Counter(got)
        if more:
            yield f"sink {sink!r} delivered what it must not: {dict(more.most_common(5))}"
        if seen.ended_well and less and not any(record.given_up for record in seen.journal.of.values()):
            yield f"sink {sink!r} did not deliver {dict(less.most_common(5))}"
        places = {item: place for place, item in enumerate(wanted)}
        if sink in subject.ordered and not more and sorted(got, key=places.__getitem__) != got:
            yield f"sink {sink!r} delivered out of order: {got}"


def waiting_bound(stage: Stage, record: NodeRecord) -> int | None:
    """Return how deep the channel in front of a node may be; None for a policy of the user's own."""
    policy = stage.admission
    if isinstance(policy, Fifo):
        return stage.capacity
    if isinstance(policy, (InOrder, Gather)):
        return stage.capacity + len(record.keys)
    if isinstance(policy, Join):
        return stage.capacity * (1 + len(policy.inputs))
    return None


def hand_bound(stage: Stage, record: NodeRecord) -> int:
    """Return how many results of a node may have been made and not sent on."""
    if stage.ordered:
        return (stage.workers + stage.capacity) * record.most_made
    # With a policy, an expansion is made whole before its first element is sent.
    return stage.workers * (1 if isinstance(stage.on_error, FailFast) else record.most_made)


def between_bound(stage: Stage, journal: Journal) -> int:
    """Return how many items may be sent to a node and not begun: its admission's bound, and those in workers' hands."""
    record, policy = journal.of[stage.name], stage.admission
    waiting = waiting_bound(stage, record)
    each = policy.count if isinstance(policy, Gather) else len(policy.inputs) if isinstance(policy, Join) else 1
    sending = sum(hand_bound(journal.stages[name], journal.of[name]) for name in stage.after)
    return len(record.arrived) if waiting is None else (waiting + stage.workers) * each + sending
