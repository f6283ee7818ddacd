"""The loads of stages, on which `policy.balancing` decides: a pure function of the statistics of an interval."""

from collections.abc import Collection

from threadloom.pipeline.observe.statistics import RunStatistics, StageStatistics
from threadloom.pipeline.policy import StageLoad


def loads_of(interval: RunStatistics, stages: Collection[str]) -> tuple[StageLoad, ...]:
    """Return the loads of some stages in an interval, `later.since(earlier)`."""
    return tuple(_load_of(stage, interval.elapsed) for stage in interval.stages if stage.name in stages)


def _load_of(stage: StageStatistics, seconds: float) -> StageLoad:
    rate = stage.items_in / seconds if seconds > 0 else 0.0
    total = stage.busy + stage.waiting + stage.blocked
    if not total:  # its workers have ended, so that they are not missed
        return StageLoad(stage.name, stage.workers, 0.0, 1.0, 0.0, stage.items_in, rate)
    waited = stage.channel.starved if stage.channel else stage.waiting
    starved = min(waited, stage.waiting)
    return StageLoad(
        stage.name,
        stage.workers,
        busy=stage.busy / total,
        starved=starved / total,
        blocked=stage.blocked / total,
        items=stage.items_in,
        rate=rate,
    )
