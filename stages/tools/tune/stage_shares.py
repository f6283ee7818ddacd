"""The shares of their time that the stages of a trial spent, and the bottleneck that follows from them, as text."""

from collections.abc import Sequence
from dataclasses import dataclass

from threadloom.pipeline import RunStatistics

NOTED = 0.1
"""Minimum share of its time that a stage was blocked or waited for it to be named."""
WORKING = 0.05
"""Minimum share of its time that a stage is busy to be named as waiting: others only pass items on."""


@dataclass(frozen=True)
class StageShares:
    """The shares of the time of the threads of one stage; they add up to 1."""

    name: str
    threads: int
    busy: float
    waiting: float
    """Waiting for input, a slot or a version of the weights."""
    blocked: float
    """Waiting for capacity downstream."""


def shares_of(statistics: RunStatistics) -> tuple[StageShares, ...]:
    """Return the shares of the stages of a run, without its source and its sinks."""
    return tuple(
        StageShares(stage.name, stage.workers, stage.busy_share, stage.waiting_share, stage.blocked_share)
        for stage in statistics.stages
        if stage.after and stage.channel is not None and stage.items_in
    )


def describe_bottleneck(stages: Sequence[StageShares]) -> str:
    """Return which stage was busiest, which was blocked and which waited most, with the shares; "" if unknown.

    For example: backward (2 threads) was busy 96 % of the time, forward (2 threads) was blocked 41 % and update waited
    80 %.
    """
    if not stages:
        return ""
    busiest = max(stages, key=lambda stage: stage.busy)
    others = [stage for stage in stages if stage is not busiest]
    held_up = [stage for stage in others if stage.blocked >= NOTED]
    blocked = max(held_up, key=lambda stage: stage.blocked, default=None)
    waiting = max(
        (stage for stage in others if stage is not blocked and stage.busy >= WORKING),
        key=lambda stage: stage.waiting,
        default=None,
    )
    parts = [f"{_named(busiest)} was busy {busiest.busy:.0%} of the time"]
    if blocked is not None:
        parts.append(f"{_named(blocked)} was blocked {blocked.blocked:.0%}")
    if waiting is not None and waiting.waiting >= NOTED:
        parts.append(f"{_named(waiting)} waited {waiting.waiting:.0%}")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _named(stage: StageShares) -> str:
    return stage.name if stage.threads == 1 else f"{stage.name} ({stage.threads} threads)"
