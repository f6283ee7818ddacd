"""The bottleneck of a pipeline: a pure function of its statistics.

A worker waits for input (starved), waits with an item for a resource (`acquire`) or its rate limit, works (busy), or
waits for capacity downstream (blocked). The bottleneck is the stage that is neither starved nor blocked: it blocks the
stages upstream and starves those downstream. If there is no such stage, a channel that is full and empty alternately
is too small for the bursts that pass through it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.observe.formatting import format_duration
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import RunStatistics, StageStatistics

OCCUPIED = 0.6
"""Occupancy from which a stage is reported as the bottleneck: the share of its time with an item and not blocked."""
NOTICEABLE = 0.05
"""Waits below this share of a stage's time are not reported."""
BURSTS = 0.15
"""A channel is reported as too small if its senders and its receivers both wait for this share of the time."""
SHORT, HANDOFF = 50e-6, 10e-6
"""Call duration below which passing an item between stages dominates, and the cost of passing an item, in seconds."""


class BottleneckKind(Enum):
    """The kind of a bottleneck."""

    NOTHING_YET = "nothing yet"
    """No items have been processed."""
    STAGE = "stage"
    """The work of one stage."""
    SOURCE = "source"
    """A source that produces items slowly."""
    CALLER = "caller"
    """The caller, which takes items from a sink slowly."""
    RESOURCE = "resource"
    """A resource that a stage acquires before each call: slots, a weight version."""
    RATE = "rate"
    """The rate limit of a stage or source."""
    HANDOFFS = "handoffs"
    """Passing items between stages costs more than the work."""
    CORES = "cores"
    """All cores are in use."""
    BURSTS = "bursts"
    """A channel too small for the variation of the durations on both sides."""
    NO_STAGE = "no stage"
    """No stage is busy enough: the cause is outside of the graph."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One stage waiting for another."""

    stage: str
    """Name of the waiting stage."""
    on: str
    """Name of the stage that it waits for: a successor with a full input channel, or a predecessor."""
    for_room: bool
    """True if blocked: the input channel of `on` is full. False if starved: the input channel of `stage` is empty."""
    share: float
    """Share of the time of the waiting workers, between 0 and 1."""

    def __str__(self) -> str:
        cause = f"for capacity of {self.on}" if self.for_room else f"for items from {self.on}"
        return f"{self.stage} waits {cause} {self.share:.0%} of its time"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The bottleneck of a run, and a remedy."""

    kind: BottleneckKind
    """The kind of the bottleneck."""
    stage: str | None
    """Name of the stage concerned; None if there is no single one."""
    why: str
    """The evidence: one sentence with figures."""
    remedy: str
    """The first remedy to try."""
    waits: tuple[Wait, ...] = ()
    """The waits between stages, longest first."""

    def __str__(self) -> str:
        return f"{self.why}: {self.remedy}" if self.remedy else self.why


def diagnose(statistics: RunStatistics, cores: int | None = None) -> Diagnosis:
    """Return the bottleneck of a run. For an interval instead of the whole run, pass `later.since(earlier)`.

    `cores` is the number of cores available to the process; if given, more workers are recommended only if cores are
    free.
    """
    waits = tuple(sorted(_waits(statistics), key=lambda wait: -wait.share))
    stages = [stage for stage in statistics.stages if _lifetime(stage) > 0]
    if not any(stage.items_out or stage.items_in for stage in stages):
        return Diagnosis(BottleneckKind.NOTHING_YET, None, "no items have been processed yet", "try again later", waits)
    occupied = {stage.name: _occupied(stage) for stage in stages}
    name = find_bottleneck(occupied)
    if name is not None:
        return _describe(statistics[name], statistics, cores, waits)
    slowest = max(stages, key=_occupied)
    handoffs = sum(stage.items_in for stage in stages) / statistics.elapsed if statistics.elapsed else 0.0
    most_frequent = max(stages, key=lambda stage: stage.items_in)
    if handoffs * HANDOFF >= 0.3 and most_frequent.tasks.p50 < SHORT:
        return Diagnosis(
            BottleneckKind.HANDOFFS,
            None,
            f"passing items between stages dominates: {handoffs:,.0f} items per second, and a call of "
            f"{most_frequent.name} takes only {format_duration(most_frequent.tasks.p50)}",
            "batch items (a larger micro-batch, or gather=Gather(count=...)), or merge short stages",
            waits,
        )
    burst = max(stages, key=_bursts)
    if _bursts(burst) >= BURSTS and burst.channel is not None:
        spread = f"{burst.tasks.p99 / burst.tasks.p50:.0f} times the p50" if burst.tasks.p50 else "irregular"
        return Diagnosis(
            BottleneckKind.BURSTS,
            burst.name,
            f"the input channel of {burst.name} is full and empty alternately (the p99 of a call is {spread})",
            f"increase its capacity from {burst.channel.capacity} to {2 * burst.channel.capacity}, or use items of "
            f"more equal cost",
            waits,
        )
    return Diagnosis(
        BottleneckKind.NO_STAGE,
        None,
        f"no stage is the bottleneck: the busiest, {slowest.name}, is busy {slowest.busy_share:.0%} of its time",
        "look outside of the graph for other processes on the machine, or a stage function that holds the GIL",
        waits,
    )


def find_bottleneck(busy: Mapping[str, float], least: float = OCCUPIED) -> str | None:
    """Return the stage with the largest share in `busy`, or None if that share is below `least`.

    `busy` maps stage names to the share of their time that they are busy. Among equal shares the first is returned.
    """
    name = max(busy, key=lambda name: busy[name], default=None)
    return name if name is not None and busy[name] >= least else None


def _describe(
    stage: StageStatistics, statistics: RunStatistics, cores: int | None, waits: tuple[Wait, ...]
) -> Diagnosis:
    name, workers = stage.name, f"{stage.workers} worker{'s' if stage.workers > 1 else ''}"
    each = f"a call takes {format_duration(stage.tasks.p50)} (p99 {format_duration(stage.tasks.p99)})"
    acquiring = _acquiring(stage)
    total = _lifetime(stage)
    if stage.throttled > max(stage.busy, acquiring / 2):
        return Diagnosis(
            BottleneckKind.RATE,
            name,
            f"{name} is waiting for its rate limit {stage.throttled / total:.0%} of its time",
            "raise its `rate` if possible; more workers do not help",
            waits,
        )
    if acquiring > stage.busy:
        return Diagnosis(
            BottleneckKind.RESOURCE,
            name,
            f"{name} is waiting for a resource (`acquire`) {acquiring / total:.0%} of its time",
            "provide more of the resource (slots, banks), or release it earlier downstream",
            waits,
        )
    why = f"{name} is the bottleneck: its {workers} {'is' if stage.workers == 1 else 'are'} busy "
    why += f"{stage.busy_share:.0%} of the time, and {each}"
    if stage.kind is NodeKind.SINK:
        why = f"the caller is the bottleneck: it keeps each item of {name} for {format_duration(stage.tasks.p50)}"
        remedy = "do less work between items, or move it into a stage"
        return Diagnosis(BottleneckKind.CALLER, name, why, remedy, waits)
    if 0 < stage.tasks.p50 < SHORT:
        remedy = "batch items (a larger micro-batch, or gather=Gather(count=...))"
        return Diagnosis(BottleneckKind.HANDOFFS, name, why, remedy, waits)
    if stage.kind is NodeKind.SOURCE:
        remedy = "let the source yield only names or indices, and do the work in a stage with several workers"
        return Diagnosis(BottleneckKind.SOURCE, name, why, remedy, waits)
    at_work = sum(each.busy for each in statistics.stages) / statistics.elapsed if statistics.elapsed else 0.0
    if cores is not None and at_work >= 0.9 * cores:
        remedy = f"speed up its function; more workers do not help: {at_work:.1f} threads are busy on {cores} cores"
        return Diagnosis(BottleneckKind.CORES, name, why, remedy, waits)
    remedy = f"use more than {workers}, or speed up its function"
    return Diagnosis(BottleneckKind.STAGE, name, why, remedy, waits)


def _waits(statistics: RunStatistics) -> Iterator[Wait]:
    """Yield the waits of blocked senders for their successors, and of starved receivers for their predecessors."""
    for stage in statistics.stages:
        if stage.channel is None:
            continue
        before = [statistics[name] for name in stage.after if name in statistics]
        blocked = sum(each.blocked for each in before)
        for each in before:
            # A channel has one sum of the waits of its senders: divide it in proportion to their own blocked times.
            seconds = stage.channel.blocked * each.blocked / blocked if blocked else 0.0
            share = seconds / _lifetime(each) if _lifetime(each) else 0.0
            if share >= NOTICEABLE:
                yield Wait(each.name, stage.name, True, min(1.0, share))
        share = stage.channel.starved / _lifetime(stage) if _lifetime(stage) else 0.0
        if share >= NOTICEABLE:
            for each in before:
                yield Wait(stage.name, each.name, False, min(1.0, share))


def _lifetime(stage: StageStatistics) -> float:
    return stage.busy + stage.waiting + stage.blocked


def _acquiring(stage: StageStatistics) -> float:
    """Return the seconds of waiting that were not for input: for a resource or a rate limit.

    0 for a sink, which acquires nothing: its caller had not started to iterate.
    """
    if stage.channel is None or stage.kind is NodeKind.SINK:
        return stage.throttled
    return max(0.0, stage.waiting - stage.channel.starved)


def _occupied(stage: StageStatistics) -> float:
    """Return the share of its time in which a stage had an item and was not blocked."""
    return (stage.busy + _acquiring(stage)) / _lifetime(stage)


def _bursts(stage: StageStatistics) -> float:
    if stage.channel is None:
        return 0.0
    return min(stage.channel.blocked, stage.channel.starved) / _lifetime(stage)
