"""Faults, and plans of them: pure data, made from a seed, apart from threads.

A fault strikes one call: the `at`-th call of a stage's function, the `at`-th element of a source, or the `at`-th item
that the caller takes from a sink, each counted from 0 over all workers. Which worker it hits, and with several workers
which item, is up to the threads; that it strikes, where, and what it does is the plan's.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.processes import OnProcesses


class FaultKind(Enum):
    """What a fault does."""

    RAISE = "raise"
    """The function raises `InjectedFault`; at a sink, the caller's own code does, inside the `with` block."""
    EXIT = "exit"
    """The function raises SystemExit, which ends a thread in silence unless somebody looks."""
    CANCEL = "cancel"
    """`run.cancel()` is called, in the thread of the stage or of the sink's consumer."""
    INTERRUPT = "interrupt"
    """Ctrl-C: SIGINT is sent to the main thread, wherever that is at the moment. Needs the run on the main thread."""
    LEAVE = "leave"
    """The caller leaves the `with` block early; at sinks only."""
    KILL = "kill"
    """The worker's process is killed (SIGKILL), `amount` milliseconds after the call began; at process stages only. The
    run need not fail: the process may have done its last item."""
    PAUSE = "pause"
    """`run.pause()` is called, and `run.resume()` `amount` milliseconds later."""
    DELAY = "delay"
    """The call takes `amount` milliseconds longer; at a sink, the consumer is slow."""
    HOLD = "hold"
    """The call waits until `amount` other things have happened in the graph, or nothing moves any more: items behind it
    overtake it as far as the graph lets them."""


STOPPING = frozenset({FaultKind.RAISE, FaultKind.EXIT, FaultKind.CANCEL, FaultKind.INTERRUPT, FaultKind.LEAVE})
"""Kinds after which a run must end without finishing its work."""


def possible(stage: Stage) -> frozenset[FaultKind]:
    """Return the kinds that this source, stage or sink can be given."""
    if stage.kind is NodeKind.SINK:
        return frozenset(FaultKind) - {FaultKind.EXIT, FaultKind.KILL}
    never = {FaultKind.LEAVE} if isinstance(stage.fn, OnProcesses) else {FaultKind.LEAVE, FaultKind.KILL}
    return frozenset(FaultKind) - never


class InjectedFault(Exception):
    """What a RAISE fault raises."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong at one call."""

    stage: str
    """Where: a source, a stage or a sink."""
    at: int
    """At which of its calls, counted from 0."""
    kind: FaultKind
    """What happens."""
    amount: float = 0
    """Of a DELAY the milliseconds, of a HOLD how many other things happen meanwhile."""
    after: bool = False
    """Whether the function has done its work when the fault strikes; its result is then lost to an error."""


@dataclass(frozen=True)
class FaultPlan:
    """All that goes wrong in one run. Its repr is valid Python, so a failure can be pasted into a test."""

    faults: tuple[Fault, ...] = ()
    """In no particular order; several may strike the same call."""
    switch_interval: float | None = None
    """Seconds after which Python takes the GIL away from a thread, during the run; tiny ones shake the threads up."""

    @classmethod
    def random(
        cls,
        graph: Graph,
        seed: int,
        *,
        calls: int = 40,
        most: int = 4,
        kinds: Collection[FaultKind] = frozenset(FaultKind),
    ) -> "FaultPlan":
        """Return a plan of up to `most` faults among the first `calls` calls; the same for the same graph and seed."""
        choose = random.Random(f"faults {seed}")
        faults = []
        for _ in range(choose.randint(0, most)):
            stage = choose.choice(graph.stages)
            allowed = sorted(possible(stage) & frozenset(kinds), key=lambda kind: kind.value)
            if allowed:
                faults.append(_one(choose, stage.name, choose.choice(allowed), calls))
        return cls(tuple(faults), choose.choice([None, None, 1e-3, 1e-4, 1e-5]))

    def check(self, graph: Graph) -> None:
        """Raise ValueError if a fault cannot strike in this graph."""
        stages = {stage.name: stage for stage in graph.stages}
        for fault in self.faults:
            if fault.stage not in stages:
                raise ValueError(f"{fault} is for a stage that graph {graph.name!r} does not have; it has {[*stages]}")
            stage = stages[fault.stage]
            if fault.kind not in possible(stage):
                raise ValueError(f"{fault} cannot strike a {stage.kind.value}: choose another kind or place")

    def __repr__(self) -> str:
        faults = "".join(
            f"Fault({fault.stage!r}, {fault.at}, {fault.kind}, {fault.amount!r}, {fault.after}), "
            for fault in self.faults
        )
        return f"FaultPlan(({faults.strip()}), switch_interval={self.switch_interval})"


def _one(choose: random.Random, stage: str, kind: FaultKind, calls: int) -> Fault:
    amount: float = 0
    if kind in (FaultKind.DELAY, FaultKind.PAUSE):
        amount = round(choose.uniform(0.01, 2), 2)
    elif kind is FaultKind.HOLD:
        amount = choose.randint(1, 30)
    elif kind is FaultKind.KILL:
        amount = choose.choice([0, 0, 0.2, 1.0])
    # Early calls more often: a fault beyond the last call never strikes.
    return Fault(stage, int(choose.random() ** 2 * calls), kind, amount, after=choose.random() < 0.3)
