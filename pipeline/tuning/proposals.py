"""Which sizes of a graph to try next: a pure function of the statistics of a trial.

The bottleneck gets more workers; a channel that is full and empty alternately gets a larger capacity; workers that
mostly wait are taken away, which leaves cores to the others.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from threadloom.pipeline.observe import (
    BottleneckKind,
    Diagnosis,
    NodeKind,
    RunStatistics,
    StageStatistics,
    diagnose,
)
from threadloom.pipeline.tuning.sizes import Freedom, GraphSizes

MOST_WORKERS = 64
"""Maximum number of workers of a stage."""
MOST_CAPACITY = 1024
NEARLY_AS_BUSY = 0.85
"""Stages that are busy for this fraction of the busiest stage's time get more workers together with it."""
BUSY_AIM = 0.8
"""Share of the time that the workers of a stage should be busy if some are taken away."""
MANY = 6
"""Maximum number of proposals: more would share the budget."""


@dataclass(frozen=True)
class Proposal:
    """Sizes to try, and the evidence for them."""

    sizes: GraphSizes
    why: str
    """What was the bottleneck before, with its figures."""


def propose(
    sizes: GraphSizes,
    statistics: RunStatistics,
    freedoms: Mapping[str, Freedom],
    tried: Collection[GraphSizes] = (),
) -> list[Proposal]:
    """Return the sizes to try after a trial with `sizes` that had these statistics, the most promising first.

    Sizes in `tried` are left out; an empty list ends the search.
    """
    found: dict[GraphSizes, Proposal] = {}
    for proposal in _all(_Trial(sizes, statistics, freedoms)):
        if proposal.sizes != sizes and proposal.sizes not in tried:
            found.setdefault(proposal.sizes, proposal)
    return list(found.values())[:MANY]


def explain(statistics: RunStatistics) -> str:
    """Return what was the bottleneck of a trial, in figures, and which stages it kept waiting."""
    return _evidence(diagnose(statistics))


def _evidence(diagnosis: Diagnosis) -> str:
    waits = [str(wait) for wait in diagnosis.waits if wait.on == diagnosis.stage][:2]
    return "; ".join([diagnosis.why, *waits])


@dataclass(frozen=True)
class _Trial:
    """A trial with the parts that proposals are made of."""

    sizes: GraphSizes
    statistics: RunStatistics
    freedoms: Mapping[str, Freedom]

    def with_workers(self, name: str, count: Callable[[int], int]) -> GraphSizes:
        """Return the sizes with another number of workers of a stage, if that may vary."""
        if not self.freedoms[name].workers:
            return self.sizes
        return self.sizes.changed(name, workers=min(MOST_WORKERS, count(self.sizes[name].workers)))

    def with_capacity(self, names: Collection[str], factor: int) -> GraphSizes:
        """Return the sizes with larger input channels of some nodes, where that may vary."""
        sizes = self.sizes
        for name in names:
            if self.freedoms[name].capacity and sizes[name].capacity < MOST_CAPACITY:
                sizes = sizes.changed(name, capacity=min(MOST_CAPACITY, factor * sizes[name].capacity))
        return sizes

    def trimmed(self) -> GraphSizes:
        """Return the sizes without the workers that mostly wait for input."""
        sizes = self.sizes
        for stage in self.statistics.stages:
            if self.freedoms[stage.name].workers and stage.kind is NodeKind.STAGE:
                enough = max(1, math.ceil(sizes[stage.name].workers * (1.0 - _idle_share(stage)) / BUSY_AIM))
                sizes = sizes.changed(stage.name, workers=min(sizes[stage.name].workers, enough))
        return sizes


def _all(trial: _Trial) -> Iterator[Proposal]:
    diagnosis = diagnose(trial.statistics)
    evidence = _evidence(diagnosis)
    name = diagnosis.stage
    if name is not None and diagnosis.kind in (BottleneckKind.STAGE, BottleneckKind.HANDOFFS):
        yield from _more_workers(trial, name, evidence)
    if diagnosis.kind is BottleneckKind.NO_STAGE:
        busiest = max(trial.statistics.stages, key=lambda stage: stage.busy_share).name
        yield Proposal(trial.with_workers(busiest, lambda count: count + 1), evidence)
    if diagnosis.kind is BottleneckKind.HANDOFFS:
        everywhere = [node.name for node in trial.sizes.nodes]
        yield Proposal(trial.with_capacity(everywhere, 4), f"{evidence}; larger channels wake threads less often")
    yield from _larger_channels(trial)
    if trial.trimmed() != trial.sizes:
        yield Proposal(trial.trimmed(), f"{_idle(trial)}; {evidence}")


def _more_workers(trial: _Trial, name: str, evidence: str) -> Iterator[Proposal]:
    """Yield more workers for the bottleneck, and for the stages that are nearly as busy."""
    busy = {stage.name: stage.busy_share for stage in trial.statistics.stages}
    others = [
        other
        for other, share in busy.items()
        if other != name and share >= NEARLY_AS_BUSY * busy[name] and trial.freedoms[other].workers
    ]
    steps: list[Callable[[int], int]] = [lambda count: 2 * count, lambda count: count + 1, lambda count: 4 * count]
    for step in steps:
        larger = trial.with_workers(name, step)
        if others:
            together = larger
            for other in others:
                together = _Trial(together, trial.statistics, trial.freedoms).with_workers(other, step)
            shares = " and ".join(f"{other} {busy[other]:.0%}" for other in others)
            yield Proposal(together, f"{evidence}; nearly as busy: {shares}")
        yield Proposal(larger, evidence)


def _larger_channels(trial: _Trial) -> Iterator[Proposal]:
    """Yield larger capacities for the channel whose senders and receivers both wait most, if they do."""
    rated = [(min(_blocked_share(stage, trial.statistics), _starved_share(stage)), stage) for stage in
             trial.statistics.stages if stage.channel is not None]  # fmt: skip
    share, stage = max(rated, key=lambda pair: pair[0], default=(0.0, None))
    if stage is None or share < 0.05:
        return
    blocked, starved = _blocked_share(stage, trial.statistics), _starved_share(stage)
    why = (
        f"the input channel of {stage.name} was full and empty alternately: its senders were blocked {blocked:.0%} of "
        f"their time, and {stage.name} was starved {starved:.0%}"
    )
    for factor in (2, 4):
        yield Proposal(trial.with_capacity([stage.name], factor), why)


def _idle(trial: _Trial) -> str:
    reduced = [node.name for node in trial.trimmed().differences(trial.sizes)]
    shares = [f"{name} {trial.statistics[name].waiting_share:.0%}" for name in reduced]
    return f"workers waited for input: those of {' and '.join(shares)} of their time"


def _lifetime(stage: StageStatistics) -> float:
    return stage.busy + stage.waiting + stage.blocked


def _starved_share(stage: StageStatistics) -> float:
    assert stage.channel is not None
    return min(1.0, stage.channel.starved / _lifetime(stage)) if _lifetime(stage) else 0.0


def _idle_share(stage: StageStatistics) -> float:
    return _starved_share(stage) if stage.channel is not None else 0.0


def _blocked_share(stage: StageStatistics, statistics: RunStatistics) -> float:
    """Return the share of the time of the senders of a channel that they were blocked by it."""
    assert stage.channel is not None
    time = sum(_lifetime(statistics[name]) for name in stage.after if name in statistics)
    return min(1.0, stage.channel.blocked / time) if time else 0.0
