"""The controller of one run: moves workers from stages that wait to the bottleneck, while the run goes on.

`policy.balancing` has the decisions, `observe.loads` the figures on which they are made.

Guarantees: the controller changes numbers of workers and nothing else, and keeps the order in which stages send their
results: a stage that was declared with one worker has `ordered=True` in a controlled run. It raises nothing into the
run: a change that fails is logged, and the stage keeps its workers from then on. A paused run is not measured, and one
that is drained or stopped is left alone. The thread ends with its run.

Ownership: everything belongs to the thread that calls `step`, which is that of the controller.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from threadloom.pipeline.core import GraphError, OneShotEvent, PipelineError, format_error
from threadloom.pipeline.observe import NodeKind, RunStatistics, Stage, loads_of
from threadloom.pipeline.policy import BalanceRules, Gather, Join, RunState, WorkerBalancer, WorkerMove

LOG = logging.getLogger("threadloom.pipeline.controller")


@dataclass(frozen=True, slots=True)
class WorkerChange:
    """A change of the workers of a running graph by its controller."""

    elapsed: float
    """Seconds from the start of the run."""
    giver: str | None
    """The stage that lost a worker; None if an unused one of the budget was started."""
    receiver: str | None
    """The stage that got a worker; None if an unused one was ended again."""
    workers: Mapping[str, int]
    """Stage → workers after the change, of the controlled stages."""
    reason: str
    """The evidence, with figures."""
    undo: bool
    """True if an earlier change, which did not help, was taken back."""

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Controller:
    """Settings of the controller of a run, for `start(controller=...)`.

    Workers of stages that starve or are blocked move to the bottleneck. No result changes and none changes its place:
    a stage with several workers sends its results in the order that it was declared with, and a stage with one worker
    that is named in `limits` is run with `ordered=True`. Each change is logged with its reason by the logger
    `threadloom.pipeline.controller`, and listed in `Run.worker_changes`.
    """

    interval: float = 1.0
    """Seconds between decisions. It should be long enough for some items of the slowest stage."""
    limits: Mapping[str, int] | None = None
    """Stage → maximum number of workers. None: the stages declared with several workers, whose functions are known to
    be called concurrently, each with up to the whole `budget`. A stage with `acquire` then gets no more workers than
    were declared, because its resource may have been sized for them; and neither does one that is not ordered in a
    graph that collects items by their keys, because more workers may overtake each other by more than a channel holds.
    """
    budget: int | None = None
    """Maximum number of workers of the controlled stages together. None: as many as they start with. A worker that a
    stage loses still finishes its current item."""
    rules: BalanceRules = field(default_factory=BalanceRules)
    """Thresholds of the decisions."""
    on_change: Callable[[WorkerChange], object] | None = None
    """Called after each change, in the thread of the controller. If it raises, that is logged."""

    def __post_init__(self) -> None:
        if not 0.0 < self.interval < math.inf:
            raise ValueError(f"a Controller needs an interval of more than 0 seconds, got {self.interval}")

    def limits_for(self, graph: str, stages: Sequence[Stage]) -> dict[str, int]:
        """Return the maximum number of workers of each controlled stage; raise GraphError if a limit does not fit."""
        declared = {stage.name: stage for stage in stages if stage.kind is NodeKind.STAGE}
        if self.limits is None:
            found = {name: each for name, each in declared.items() if each.workers > 1 and each.concurrency is None}
            budget = self.budget_for(found.values())
            by_key = any(map(_collects_by_key, stages))
            return {
                name: each.workers if each.acquire or (by_key and not each.ordered) else budget
                for name, each in found.items()
            }
        for name, limit in self.limits.items():
            if name not in declared:
                raise GraphError(f"controller of {graph!r}: there is no stage {name!r}; the stages are {[*declared]}")
            _check_limit(declared[name], limit)
        self.budget_for([declared[name] for name in self.limits])
        return dict(self.limits)

    def budget_for(self, stages: Collection[Stage]) -> int:
        """Return the maximum number of workers of these stages together; raise GraphError if they have more."""
        workers = sum(stage.workers for stage in stages)
        if self.budget is not None and self.budget < workers:
            raise GraphError(f"the controlled stages start with {workers} workers, more than budget={self.budget}")
        return workers if self.budget is None else self.budget


def _collects_by_key(stage: Stage) -> bool:
    """Return True if items wait in the input channel of a stage for others with the same key."""
    policy = stage.admission
    return (isinstance(policy, Gather) and policy.key is not None) or (
        isinstance(policy, Join) and policy.keys is not None
    )


def _check_limit(stage: Stage, limit: int) -> None:
    subject = f"controller: the workers of stage {stage.name!r} cannot be changed"
    if stage.concurrency is not None:
        raise GraphError(f"{subject}, because it runs coroutines: its concurrency is the number of items in flight")
    if stage.workers == 1 and hasattr(stage.fn, "flush"):
        raise GraphError(f"{subject}, because its function is an object with flush, which collects all items")
    if limit < stage.workers:
        raise GraphError(f"controller: stage {stage.name!r} starts with {stage.workers} workers, got limit {limit!r}")


def in_order(stages: Sequence[Stage], controlled: Collection[str]) -> list[Stage]:
    """Return the stages, of which those that may get a second worker keep the order of their items."""
    return [replace(each, ordered=True) if each.name in controlled and each.threads == 1 else each for each in stages]


@dataclass(frozen=True)
class ControlledRun:
    """The functions of a run that its controller uses."""

    statistics: Callable[[], RunStatistics]
    resize: Callable[[str, int], None]
    """Changes the number of workers of a stage."""
    check_resizable: Callable[[str, int], object]
    """Raises PipelineError if a stage cannot have a number of workers."""
    state: Callable[[], RunState]
    decided: OneShotEvent
    """Set once the outcome of the run is decided."""


class WorkerControl:
    """The controller of one run; `run` is the target of its thread and sets `ended` as its last action."""

    def __init__(
        self,
        controller: Controller,
        graph: str,
        stages: Sequence[Stage],
        run: ControlledRun,
        changes: list[WorkerChange],
    ) -> None:
        """`changes` receives each change."""
        self._controller = controller
        self._graph = graph
        self._run = run
        self._changes = changes
        limits = controller.limits_for(graph, stages)
        budget = controller.budget_for([stage for stage in stages if stage.name in limits])
        self._balancer = WorkerBalancer(limits, budget, controller.rules)
        self._controlled = tuple(limits)
        for name, limit in limits.items():
            self._check_resizable(name, limit)
        self._before: RunStatistics | None = None  # at the begin of the interval
        self.ended = OneShotEvent()

    def run(self) -> None:
        """Decide once per interval until the outcome of the run is decided."""
        try:
            while not self._run.decided.wait(self._controller.interval):
                self.step()
        except Exception:
            LOG.exception("the controller of graph %r failed; the run continues without it", self._graph)
        finally:
            self.ended.set()

    def step(self) -> None:
        """End the interval, and move a worker if that is justified."""
        state = self._run.state()
        if state is not RunState.RUNNING:
            self._before = None  # a pause belongs to no interval
            return
        now, before = self._run.statistics(), self._before
        if before is None:
            self._before = now
            return
        loads = loads_of(now.since(before), self._controlled)
        if not self._balancer.is_measurable(loads):
            return  # the interval goes on
        self._before = now
        move = self._balancer.decide(loads)
        if move is not None and self._apply(move, {load.name: load.workers for load in loads}):
            self._record(move, now.elapsed)

    def _check_resizable(self, stage: str, workers: int) -> None:
        try:
            self._run.check_resizable(stage, workers)
        except PipelineError as error:
            self._drop(stage, error)

    def _apply(self, move: WorkerMove, workers: Mapping[str, int]) -> bool:
        """Resize the stages of a move, that which loses a worker first; return False if one could not be resized."""
        if move.giver and not self._resize(move.giver, workers[move.giver] - 1):
            return False
        if move.receiver and not self._resize(move.receiver, workers[move.receiver] + 1):
            self._resize(move.receiver, workers[move.receiver])
            if move.giver:
                self._resize(move.giver, workers[move.giver])
            return False
        return True

    def _resize(self, stage: str, workers: int) -> bool:
        try:
            self._run.resize(stage, workers)
        except Exception as error:
            self._drop(stage, error)
            return False
        return True

    def _drop(self, stage: str, error: Exception) -> None:
        if stage in self._balancer.stages:
            LOG.warning(
                "the controller of graph %r leaves stage %r alone from now on: %s",
                self._graph,
                stage,
                format_error(error),
            )
        self._balancer.drop(stage)

    def _record(self, move: WorkerMove, elapsed: float) -> None:
        now = self._run.statistics()
        workers = {name: now[name].workers for name in self._controlled}
        change = WorkerChange(elapsed, move.giver, move.receiver, workers, move.reason, move.undo)
        self._changes.append(change)
        LOG.info("graph %r: %s", self._graph, change)
        if self._controller.on_change is not None:
            try:
                self._controller.on_change(change)
            except Exception:
                LOG.exception("on_change of the controller of graph %r failed; the run continues", self._graph)
