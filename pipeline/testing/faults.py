"""Faults and fault plans: pure data, determined by a seed, apart from threads.

A fault occurs at one call: the `at`-th call of a stage's function, the `at`-th element of a source, or the `at`-th item
that the caller takes from a sink, counted from 0 over all workers. The plan determines its place and
effect; scheduling determines the worker and, with several workers, the item.
"""

import os
import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from threadloom.pipeline.graph import Graph
from threadloom.pipeline.observe import NodeKind, Stage
from threadloom.pipeline.policy import OnFailure
from threadloom.pipeline.processes import OnProcesses


class FaultKind(Enum):
    """The effect of a fault."""

    RAISE = "raise"
    """The function raises `InjectedFault`; at a sink, the caller's code raises it inside the `with` block."""
    EXIT = "exit"
    """The function raises SystemExit, which ends a plain thread without a message."""
    CANCEL = "cancel"
    """`run.cancel()` is called in the thread of the stage or of the sink's consumer."""
    INTERRUPT = "interrupt"
    """Ctrl-C: SIGINT is sent to the main thread, at any point of its execution. The run must be on the main thread."""
    LEAVE = "leave"
    """The caller leaves the `with` block early. Sinks only."""
    KILL = "kill"
    """The worker's process is killed (SIGKILL) `amount` milliseconds after the start of the call. Process stages only.
    The run does not fail if the process has already finished its last item."""
    PAUSE = "pause"
    """`run.pause()` is called, and `run.resume()` `amount` milliseconds later."""
    DELAY = "delay"
    """The call takes `amount` milliseconds longer; at a sink, the consumer does."""
    HOLD = "hold"
    """The call waits for `amount` other events in the graph, or until no event occurs any longer. Later items overtake
    this one as far as the graph allows."""
    POLICY = "policy"
    """The function raises `PolicyFault`, and the failure policy of the stage, if it has one, raises it again."""
    FINALISER = "finaliser"
    """The call leaves `amount` objects in reference cycles. Their `__del__` reads the statistics of the run, pauses and
    resumes it, in any thread and at any instruction at which the garbage collector runs."""
    DROP = "drop"
    """The call iterates another graph and leaves the iterator in a reference cycle, for the collector to close."""
    RESIZE = "resize"
    """`run.resize()` is called with `amount` workers. Only stages with several workers, whose order is free."""
    DRAIN = "drain"
    """`run.drain()` is called: the sources end, and the rest of their items is never sent."""
    FORK = "fork"
    """The process is forked. The child must see that the run is not its own, and ends; the call waits for it."""


STOPPING = frozenset(
    {
        FaultKind.RAISE,
        FaultKind.EXIT,
        FaultKind.CANCEL,
        FaultKind.INTERRUPT,
        FaultKind.LEAVE,
        FaultKind.POLICY,
    }
)
"""Kinds that must end a run before it has processed all items."""
COLLECTED = frozenset({FaultKind.FINALISER, FaultKind.DROP})
"""Kinds whose effect occurs when the garbage collector runs."""


def possible(stage: Stage) -> frozenset[FaultKind]:
    """Return the kinds of fault that can occur at this source, stage or sink."""
    never = set() if hasattr(os, "fork") else {FaultKind.FORK}
    if stage.kind is NodeKind.SINK:
        return frozenset(FaultKind) - never - {FaultKind.EXIT, FaultKind.KILL, FaultKind.POLICY, FaultKind.RESIZE}
    if isinstance(stage.fn, OnProcesses):
        never |= {FaultKind.RESIZE, FaultKind.FORK}
    else:
        never |= {FaultKind.KILL}
    if stage.workers == 1 or stage.kind is NodeKind.SOURCE:
        never |= {FaultKind.RESIZE}
    return frozenset(FaultKind) - never - {FaultKind.LEAVE}


class InjectedFault(Exception):
    """The exception of a RAISE fault."""


class PolicyFault(InjectedFault):
    """The exception of a POLICY fault."""


@dataclass(frozen=True)
class Fault:
    """A fault at one call."""

    stage: str
    """Name of the source, stage or sink."""
    at: int
    """Index of the call, from 0."""
    kind: FaultKind
    """The effect."""
    amount: float = 0
    """Milliseconds for DELAY, PAUSE, KILL; number of events for HOLD, objects for FINALISER, workers for RESIZE."""
    after: bool = False
    """True if the fault occurs after the function has returned; an error then discards its result."""


@dataclass(frozen=True)
class FaultPlan:
    """The faults of one run. Its repr is valid Python, so that a failure can be pasted into a test."""

    faults: tuple[Fault, ...] = ()
    """The faults, in any order; several may occur at the same call."""
    switch_interval: float | None = None
    """Python's thread switch interval during the run, in seconds; small values vary the interleaving of threads."""
    on_failure: OnFailure = OnFailure.STOP
    """As for `Graph.start`."""

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
        """Return a plan of at most `most` faults among the first `calls` calls, determined by graph and seed."""
        choose = random.Random(f"faults {seed}")
        faults = []
        for _ in range(choose.randint(0, most)):
            stage = choose.choice(graph.stages)
            allowed = sorted(possible(stage) & frozenset(kinds), key=lambda kind: kind.value)
            if allowed:
                faults.append(_random_fault(choose, stage.name, choose.choice(allowed), calls))
        interval = choose.choice([None, None, 1e-3, 1e-4, 1e-5])
        can_drain = all(stage.acquire is None for stage in graph.stages)
        return cls(tuple(faults), interval, choose.choice(list(OnFailure)) if can_drain else OnFailure.STOP)

    def check(self, graph: Graph) -> None:
        """Raise ValueError if a fault cannot occur in this graph."""
        stages = {stage.name: stage for stage in graph.stages}
        for fault in self.faults:
            if fault.stage not in stages:
                raise ValueError(f"{fault}: graph {graph.name!r} has no stage {fault.stage!r}; it has {[*stages]}")
            stage = stages[fault.stage]
            if fault.kind not in possible(stage):
                raise ValueError(f"{fault} cannot occur at a {stage.kind.value}: choose another kind or stage")

    def __repr__(self) -> str:
        faults = "".join(
            f"Fault({fault.stage!r}, {fault.at}, {fault.kind}, {fault.amount!r}, {fault.after}), "
            for fault in self.faults
        )
        settings = f"switch_interval={self.switch_interval}, on_failure=OnFailure.{self.on_failure.name}"
        return f"FaultPlan(({faults.strip()}), {settings})"


def _random_fault(choose: random.Random, stage: str, kind: FaultKind, calls: int) -> Fault:
    amount: float = 0
    if kind in (FaultKind.DELAY, FaultKind.PAUSE):
        amount = round(choose.uniform(0.01, 2), 2)
    elif kind is FaultKind.HOLD:
        amount = choose.randint(1, 30)
    elif kind is FaultKind.KILL:
        amount = choose.choice([0, 0, 0.2, 1.0])
    elif kind is FaultKind.FINALISER:
        amount = choose.randint(1, 100)
    elif kind is FaultKind.RESIZE:
        amount = choose.randint(1, 4)
    # Early calls are preferred: a fault beyond the last call never occurs.
    return Fault(stage, int(choose.random() ** 2 * calls), kind, amount, after=choose.random() < 0.3)
