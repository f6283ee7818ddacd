"""An oracle of the tuner: a line of stages simulated as queues with several servers and bounded buffers.

Item k is taken by the first worker that is free, once item k - 1 has been taken. It leaves in order, and once the next
channel has room: when the item that came as many items earlier as the channel's capacity has been taken from it.
Nothing here is imported from the engine, except the types of its statistics.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from threadloom.pipeline.observe.histogram import Distribution, Histogram
from threadloom.pipeline.observe.stage import NodeKind
from threadloom.pipeline.observe.statistics import ChannelStatistics, RunStatistics, StageStatistics
from threadloom.pipeline.tuning.sizes import Freedom, GraphSizes, StageSize
from threadloom.pipeline.tuning.trials import GraphTrial


@dataclass(frozen=True)
class Step:
    """One stage of the line; the first is the source, the last the sink."""

    name: str
    seconds: float
    """Mean duration of a call."""
    jitter: float = 0.0
    """0: all calls take the same time; 1: exponentially distributed durations."""


@dataclass
class SimulatedLine:
    """A line of stages on a machine with `cores`; a trial takes `cost` seconds, and its score has `noise`."""

    steps: Sequence[Step]
    cores: float = 1e9
    noise: float = 0.0
    cost: float = 1.0
    items: int = 400

    def __post_init__(self) -> None:
        self.rng = random.Random(3)
        self.tried: list[GraphSizes] = []
        self._runs: dict[tuple[GraphSizes, float], RunStatistics] = {}

    @property
    def declared(self) -> GraphSizes:
        return GraphSizes(tuple(StageSize(step.name, 1, 2) for step in self.steps))

    @property
    def freedoms(self) -> dict[str, Freedom]:
        inner = {step.name: Freedom(NodeKind.STAGE, True, True) for step in self.steps[1:-1]}
        first, last = self.steps[0].name, self.steps[-1].name
        return {first: Freedom(NodeKind.SOURCE, False, False), **inner, last: Freedom(NodeKind.SINK, False, True)}

    def __call__(self, sizes: GraphSizes) -> GraphTrial:
        self.tried.append(sizes)
        statistics = self.run(sizes)
        score = self.items / statistics.elapsed * self.rng.gauss(1.0, self.noise)
        return GraphTrial(score, self.cost, self.items, statistics)

    def rate(self, sizes: GraphSizes) -> float:
        """Return the items per second without noise."""
        return self.items / self.run(sizes).elapsed

    def run(self, sizes: GraphSizes) -> RunStatistics:
        """Simulate one run. If more workers are busy than there are cores, all calls take longer in proportion."""
        statistics = self._run(sizes, 1.0)
        at_once = sum(stage.busy for stage in statistics.stages) / statistics.elapsed
        return statistics if at_once <= self.cores else self._run(sizes, at_once / self.cores)

    def _run(self, sizes: GraphSizes, slower: float) -> RunStatistics:
        if (sizes, slower) in self._runs:
            return self._runs[sizes, slower]
        count = len(self.steps)
        rng = random.Random(11)
        free = [[0.0] * sizes[step.name].workers for step in self.steps]
        taken: list[list[float]] = [[] for _ in self.steps]
        left: list[float] = [0.0] * count
        busy, waiting, blocked = [0.0] * count, [0.0] * count, [0.0] * count
        calls = [Histogram() for _ in self.steps]
        for item in range(self.items):
            arrival = 0.0
            for place, step in enumerate(self.steps):
                idle_since = heapq.heappop(free[place])
                begin = max(arrival, idle_since, taken[place][-1] if taken[place] else 0.0)
                taken[place].append(begin)
                chance = 1.0 - step.jitter + step.jitter * rng.expovariate(1.0)
                seconds = step.seconds * slower * chance
                done = begin + seconds
                leave = max(done, left[place])
                if place + 1 < count:
                    earlier = item - sizes[self.steps[place + 1].name].capacity
                    if earlier >= 0:
                        leave = max(leave, taken[place + 1][earlier])
                left[place] = leave
                heapq.heappush(free[place], leave)
                busy[place] += seconds
                waiting[place] += begin - idle_since
                blocked[place] += leave - done
                calls[place].add(int(seconds * 1e9))
                arrival = leave
        found = self._runs[sizes, slower] = self._statistics(sizes, busy, waiting, blocked, calls, left[-1])
        return found

    def _statistics(
        self,
        sizes: GraphSizes,
        busy: Sequence[float],
        waiting: Sequence[float],
        blocked: Sequence[float],
        calls: Sequence[Histogram],
        elapsed: float,
    ) -> RunStatistics:
        stages = []
        for place, step in enumerate(self.steps):
            kind = [NodeKind.SOURCE, *[NodeKind.STAGE] * (len(self.steps) - 2), NodeKind.SINK][place]
            capacity = sizes[step.name].capacity
            channel = ChannelStatistics(capacity, 0, 0.0, capacity, self.items, blocked[place - 1], waiting[place])
            stages.append(
                StageStatistics(
                    step.name,
                    sizes[step.name].workers,
                    self.items,
                    self.items,
                    busy[place],
                    waiting[place] if place else 0.0,
                    blocked[place],
                    channel if place else None,
                    Distribution.of([calls[place]]),
                    kind=kind,
                    after=(self.steps[place - 1].name,) if place else (),
                )
            )
        return RunStatistics("simulated", elapsed, tuple(stages))
