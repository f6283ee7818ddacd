"""What holds a pipeline up, in words: a pure function of its statistics.

A worker's time has four parts: it waits for input (starved), it has an item and waits for a resource (`acquire`), it
works (busy), or it waits for room behind (blocked). The stage that sets the pace is the one that is neither starved nor
blocked; those before it are blocked by it, and those behind it are starved by it. When no stage is like that, the
channel that is both full and empty a good part of the time is too small for the bursts that go through it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.observe.formatting import format_duration
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import RunStatistics, StageStatistics

OCCUPIED = 0.6
"""From this share of its time on, with an item in hand, a stage is said to set the pace."""
NOTICEABLE = 0.05
"""Waits below this share of a stage's time are left out."""
BURSTS = 0.15
"""A channel whose senders and receivers both wait for it for this share of their time is full and empty in turns."""
SHORT, HOP = 50e-6, 10e-6
"""Seconds below which a call is not worth a hop of its own, and what a hop costs."""


class BottleneckKind(Enum):
    """What kind of thing sets the pace."""

    NOTHING_YET = "nothing yet"
    """Too little has happened to tell."""
    STAGE = "stage"
    """The work of one stage."""
    SOURCE = "source"
    """How fast a source makes items."""
    CALLER = "caller"
    """How fast the caller takes them out of a sink."""
    RESOURCE = "resource"
    """What a stage acquires before it works: slots, a weight version."""
    HOPS = "hops"
    """Handing over costs more than the work itself."""
    CORES = "cores"
    """Every core is at work."""
    BURSTS = "bursts"
    """A channel too small for the unevenness of the stages on both sides of it."""
    NO_STAGE = "no stage"
    """No stage is busy enough to be the cause: what they wait for is outside of the graph."""


@dataclass(frozen=True, slots=True)
class Wait:
    """That one stage waits for another."""

    stage: str
    """Who waits."""
    on: str
    """For whom: the stage behind, to make room, or the stage in front, to send something."""
    for_room: bool
    """True: blocked, the channel in front of `on` is full. False: starved, the channel in front of `stage` is empty."""
    share: float
    """Of the time of the workers that wait; 1 is always."""

    def __str__(self) -> str:
        what = f"for room in front of {self.on}" if self.for_room else f"for items from {self.on}"
        return f"{self.stage} waits {what} {self.share:.0%} of its time"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where the time goes, and what to do about it."""

    kind: BottleneckKind
    """What kind of thing sets the pace."""
    stage: str | None
    """The stage that it is about; None if it is about no single one."""
    why: str
    """The figures that say so, in a sentence."""
    remedy: str
    """What to try first."""
    waits: tuple[Wait, ...] = ()
    """Which stage waits for which, the longest first."""

    def __str__(self) -> str:
        return f"{self.why}: {self.remedy}" if self.remedy else self.why


def diagnose(statistics: RunStatistics, cores: int | None = None) -> Diagnosis:
    """Name what sets the pace. For the last minute rather than the whole run, give `later.since(earlier)`.

    With `cores`, how many the process may use, more workers are not recommended where none is free for them.
    """
    waits = tuple(sorted(_waits(statistics), key=lambda wait: -wait.share))
    stages = [stage for stage in statistics.stages if _lifetime(stage) > 0]
    if not any(stage.items_out or stage.items_in for stage in stages):
        return Diagnosis(
            BottleneckKind.NOTHING_YET, None, "nothing has gone through yet", "wait a moment and look again", waits
        )
    occupied = {stage.name: _occupied(stage) for stage in stages}
    name = find_bottleneck(occupied)
    if name is not None:
        return _about(statistics[name], statistics, cores, waits)
    slowest = max(stages, key=_occupied)
    hops = sum(stage.items_in for stage in stages) / statistics.elapsed if statistics.elapsed else 0.0
    liveliest = max(stages, key=lambda stage: stage.items_in)
    if hops * HOP >= 0.3 and liveliest.tasks.p50 < SHORT:
        return Diagnosis(
            BottleneckKind.HOPS,
            None,
            f"handing over takes the time: {hops:,.0f} hops a second, and a call of {liveliest.name} takes just "
            f"{format_duration(liveliest.tasks.p50)}",
            "hand over more at once (a larger micro-batch, or gather=Gather(count=...)), or join short stages into one",
            waits,
        )
    burst = max(stages, key=_bursts)
    if _bursts(burst) >= BURSTS and burst.channel is not None:
        spread = f"{burst.tasks.p99 / burst.tasks.p50:.0f} times its p50" if burst.tasks.p50 else "uneven"
        return Diagnosis(
            BottleneckKind.BURSTS,
            burst.name,
            f"the channel in front of {burst.name} is full and empty in turns (p99 of a task is {spread})",
            f"raise its capacity from {burst.channel.capacity} to {2 * burst.channel.capacity}, or make items of more "
            f"equal size",
            waits,
        )
    return Diagnosis(
        BottleneckKind.NO_STAGE,
        None,
        f"no stage sets the pace: the busiest, {slowest.name}, is at work {slowest.busy_share:.0%} of its time",
        "look outside of the graph: other processes on the machine, or a stage function that holds the GIL",
        waits,
    )


def find_bottleneck(busy: Mapping[str, float], least: float = OCCUPIED) -> str | None:
    """Return the stage with the largest share in `busy` (stage name → share of its time), or None if it is < `least`.

    Of stages with equal shares the first counts.
    """
    name = max(busy, key=lambda name: busy[name], default=None)
    return name if name is not None and busy[name] >= least else None


def _about(stage: StageStatistics, statistics: RunStatistics, cores: int | None, waits: tuple[Wait, ...]) -> Diagnosis:
    name, workers = stage.name, f"{stage.workers} worker{'s' if stage.workers > 1 else ''}"
    each = f"a call takes {format_duration(stage.tasks.p50)} (p99 {format_duration(stage.tasks.p99)})"
    acquiring = _acquiring(stage)
    total = _lifetime(stage)
    if acquiring > stage.busy:
        return Diagnosis(
            BottleneckKind.RESOURCE,
            name,
            f"{name} has an item but waits for what it acquires {acquiring / total:.0%} of its time",
            "provide more of it (slots, banks), or have the stages behind give it back sooner",
            waits,
        )
    why = f"{name} sets the pace: its {workers} {'is' if stage.workers == 1 else 'are'} busy {stage.busy_share:.0%} of "
    why += f"the time, and {each}"
    if stage.kind is NodeKind.SINK:
        why = f"the caller sets the pace: it keeps each item of {name} for {format_duration(stage.tasks.p50)}"
        remedy = "do less between two items, or move that work into a stage with workers of its own"
        return Diagnosis(BottleneckKind.CALLER, name, why, remedy, waits)
    if 0 < stage.tasks.p50 < SHORT:
        remedy = "hand over more at once (a larger micro-batch, or gather=Gather(count=...)), so that hops weigh less"
        return Diagnosis(BottleneckKind.HOPS, name, why, remedy, waits)
    if stage.kind is NodeKind.SOURCE:
        remedy = "let the source make just names or indices, and do the work in a stage behind it, with several workers"
        return Diagnosis(BottleneckKind.SOURCE, name, why, remedy, waits)
    at_work = sum(each.busy for each in statistics.stages) / statistics.elapsed if statistics.elapsed else 0.0
    if cores is not None and at_work >= 0.9 * cores:
        remedy = f"make it faster; more workers would not help, as {at_work:.1f} threads are at work on {cores} cores"
        return Diagnosis(BottleneckKind.CORES, name, why, remedy, waits)
    remedy = f"give it more workers than {stage.workers}, or make its function faster"
    return Diagnosis(BottleneckKind.STAGE, name, why, remedy, waits)


def _waits(statistics: RunStatistics) -> Iterator[Wait]:
    """Who waits for whom: blocked senders by the stage behind, starved receivers by the stages in front."""
    for stage in statistics.stages:
        if stage.channel is None:
            continue
        before = [statistics[name] for name in stage.after if name in statistics]
        blocked = sum(each.blocked for each in before)
        for each in before:
            # A channel counts the waits of its senders together: each gets the part that it was blocked for itself.
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
    """Seconds of waiting that were not for input. A sink acquires nothing: its caller had just not begun to iterate."""
    if stage.channel is None or stage.kind is NodeKind.SINK:
        return 0.0
    return max(0.0, stage.waiting - stage.channel.starved)


def _occupied(stage: StageStatistics) -> float:
    """Share of its time in which a stage had an item in hand and was not held up behind."""
    return (stage.busy + _acquiring(stage)) / _lifetime(stage)


def _bursts(stage: StageStatistics) -> float:
    if stage.channel is None:
        return 0.0
    return min(stage.channel.blocked, stage.channel.starved) / _lifetime(stage)
