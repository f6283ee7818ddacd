"""Which worker to move while a graph runs: a state machine on the loads of its stages, without threads and clocks.

    interval | 1        2        3        4       5       6        7 ...
    ---------|---------------------------------------------------------------------------------------
    loads    | justify  justify  settle   judge   judge   rest     a new move may be justified
    result   |          move                      keep it, or take it back and remember that it did not help

A stage whose workers are busy nearly all the time is the bottleneck and gets a worker: an unused one of the budget, or
one of a stage whose workers starve or are blocked. One move is on trial at a time. It helped if the stage that got the
worker processes more items per second, or if it processes as many and another stage has become the bottleneck.

Guarantees: the workers never exceed the budget, unless they did at the start; a stage keeps at least one worker and
never gets more than its limit. Under loads that do not change, only finitely many moves are made: a worker goes from
a stage that would still be faster than the bottleneck to the bottleneck, and a move that was taken back is repeated
only after the load of one of its stages has changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageLoad:
    """The load of a stage in an interval. The shares are of its workers' time; waits for a resource are in none."""

    name: str
    workers: int
    """Intended number of workers at the end of the interval."""
    busy: float
    """Share of the time inside the stage function."""
    starved: float
    """Share of the time waiting for an item."""
    blocked: float
    """Share of the time waiting for capacity downstream."""
    items: int
    """Items started."""
    rate: float
    """Items started per second."""

    def occupied_with(self, workers: int) -> float:
        """Return the share of the time that `workers` workers would have an item and not be blocked."""
        return max(0.0, 1.0 - self.starved - self.blocked) * self.workers / workers

    def describe_idleness(self) -> str:
        """Return why the workers were idle, for example "starved 82% of the time"."""
        if self.starved >= self.blocked:
            return f"starved {self.starved:.0%} of the time"
        return f"blocked {self.blocked:.0%} of the time"


@dataclass(frozen=True, slots=True)
class WorkerMove:
    """A worker that one stage loses and another one gets."""

    giver: str | None
    """The stage that loses a worker; None if an unused one of the budget is started."""
    receiver: str | None
    """The stage that gets a worker; None if a worker is only taken back."""
    reason: str
    """The evidence, with figures."""
    undo: bool = False
    """True if an earlier move, which did not help, is taken back."""


@dataclass(frozen=True)
class BalanceRules:
    """Thresholds of the decisions. Shares are between 0 and 1; periods are in intervals."""

    saturated: float = 0.85
    """A stage whose workers are busy for this share of the time is a bottleneck."""
    spare: float = 0.75
    """A stage gives a worker if the remaining ones would have work for at most this share of the time."""
    confirm: int = 2
    """Consecutive intervals that have to justify the same move."""
    settle: int = 1
    """Intervals after a move that are not judged."""
    judge: int = 2
    """Intervals that are then judged together."""
    rest: int = 4
    """Intervals for which a stage keeps a worker that has helped it."""
    gain: float = 0.03
    """A move helped if the stage that got the worker processes more items per second by this share."""
    change: float = 0.25
    """A move that did not help is tried again after the busy share of one of its stages has changed by this much."""

    def __post_init__(self) -> None:
        for name in ("saturated", "spare", "gain", "change"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"BalanceRules: {name} is a share between 0 and 1, got {getattr(self, name)!r}")
        for name, least in (("confirm", 1), ("settle", 0), ("judge", 1), ("rest", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"BalanceRules: {name} is at least {least} intervals, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class _Refusal:
    """A move that did not help, with the loads on which it had been decided."""

    giver: StageLoad | None  # None: the receiver does not profit from another worker, whoever gives it
    receiver: StageLoad


class _Trial:
    """The last move, until it is kept or taken back."""

    def __init__(self, move: WorkerMove, loads: Mapping[str, StageLoad], rate: float) -> None:
        assert move.receiver is not None
        self.move = move
        self.receiver = loads[move.receiver]
        self.giver = loads[move.giver] if move.giver else None
        self.rate = rate  # items per second of the receiver before the move
        self.rates: list[float] = []  # after it, one per judged interval
        self.settled = 0
        changes = {move.receiver: 1, **({move.giver: -1} if move.giver else {})}
        self.workers = {name: load.workers + changes.get(name, 0) for name, load in loads.items()}


class WorkerBalancer:
    """The decisions of one run. `decide` is called once per interval, and assumes that its moves are carried out."""

    def __init__(self, limits: Mapping[str, int], budget: int, rules: BalanceRules | None = None) -> None:
        """`limits` has the maximum number of workers of each stage that may be changed; `budget` that of all."""
        self._limits = dict(limits)
        self._budget = budget
        self._rules = rules or BalanceRules()
        self._candidate: tuple[str | None, str] | None = None  # giver and receiver of the move that is being justified
        self._rates: list[float] = []  # of its receiver, in the intervals that justify it
        self._trial: _Trial | None = None
        self._pause = 0  # intervals until moves are considered again
        self._rest: dict[str, int] = {}  # stage → intervals for which it gives no worker
        self._refusals: list[_Refusal] = []

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose workers may be changed."""
        return tuple(self._limits)

    def drop(self, stage: str) -> None:
        """Change the workers of this stage no longer."""
        self._limits.pop(stage, None)
        self._forget()

    def is_measurable(self, loads: Iterable[StageLoad]) -> bool:
        """Return True if each saturated stage has started an item per worker: else the interval is too short."""
        return all(
            load.items >= load.workers
            for load in loads
            if load.name in self._limits and load.busy >= self._rules.saturated
        )

    def decide(self, loads: Sequence[StageLoad]) -> WorkerMove | None:
        """Return the move to carry out after an interval with these loads, or None."""
        by_name = {load.name: load for load in loads}
        self._rest = {name: left - 1 for name, left in self._rest.items() if left > 1}
        if self._trial is not None:
            return self._judge(self._trial, by_name)
        if self._pause:
            self._pause -= 1
            return None
        self._refusals = [each for each in self._refusals if not self._is_outdated(each, by_name)]
        return self._justify(by_name)

    def _forget(self) -> None:
        """End the trial and the justification in progress."""
        self._trial = self._candidate = None
        self._rates = []

    def _justify(self, loads: Mapping[str, StageLoad]) -> WorkerMove | None:
        candidate = self._find(loads)
        if candidate is None or candidate != self._candidate:
            self._forget()
            self._candidate = candidate
        if candidate is None:
            return None
        giver, receiver = candidate
        self._rates.append(loads[receiver].rate)
        if len(self._rates) < self._rules.confirm:
            return None
        move = WorkerMove(giver, receiver, self._reason(loads, giver, receiver))
        rate = sum(self._rates) / len(self._rates)
        self._forget()
        self._trial = _Trial(move, loads, rate)
        return move

    def _find(self, loads: Mapping[str, StageLoad]) -> tuple[str | None, str] | None:
        """Return the stages between which a worker should move: the busiest one that may get one, and the idlest."""
        for receiver in sorted(loads.values(), key=lambda load: -load.busy):
            if receiver.busy < self._rules.saturated:
                return None
            if receiver.workers >= self._limits.get(receiver.name, 0) or self._is_refused(None, receiver.name):
                continue
            if sum(load.workers for load in loads.values()) < self._budget:
                return None, receiver.name
            givers = [load for load in loads.values() if self._may_give(load, receiver)]
            if givers:
                idlest = min(givers, key=lambda load: load.occupied_with(load.workers - 1))
                return idlest.name, receiver.name
        return None

    def _may_give(self, load: StageLoad, receiver: StageLoad) -> bool:
        return (
            load.workers > 1
            and load.name in self._limits
            and load.name != receiver.name
            and load.name not in self._rest
            and load.occupied_with(load.workers - 1) <= self._rules.spare
            and not self._is_refused(load.name, receiver.name)
        )

    def _is_refused(self, giver: str | None, receiver: str) -> bool:
        return any(
            (each.giver.name if each.giver else None) == giver and each.receiver.name == receiver
            for each in self._refusals
        )

    def _is_outdated(self, refusal: _Refusal, loads: Mapping[str, StageLoad]) -> bool:
        """Return True if the load of a stage of the refused move is no longer that on which it was decided."""
        parts = [part for part in (refusal.giver, refusal.receiver) if part is not None and part.name in loads]
        return any(abs(loads[part.name].busy - part.busy) > self._rules.change for part in parts)

    def _reason(self, loads: Mapping[str, StageLoad], giver: str | None, receiver: str) -> str:
        busy = f"{receiver!r} (busy {loads[receiver].busy:.0%})"
        if giver is None:
            used = sum(load.workers for load in loads.values())
            return f"started a worker of {busy}: {used} of {self._budget} were in use"
        return f"moved a worker from {giver!r} ({loads[giver].describe_idleness()}) to {busy}"

    def _judge(self, trial: _Trial, loads: Mapping[str, StageLoad]) -> WorkerMove | None:
        """Keep the move on trial, or return the one that takes it back, once it has been observed for long enough."""
        if {name: load.workers for name, load in loads.items()} != trial.workers:
            self._forget()  # the caller has changed the workers too, which no measurement can tell apart
            return None
        if trial.settled < self._rules.settle:
            trial.settled += 1
            return None
        receiver = loads[trial.receiver.name]
        trial.rates.append(receiver.rate)
        if len(trial.rates) < self._rules.judge:
            return None
        self._forget()
        after = sum(trial.rates) / len(trial.rates)
        if self._has_helped(trial, after, loads):
            self._rest[receiver.name] = self._rules.rest
            return None
        return self._take_back(trial, after)

    def _has_helped(self, trial: _Trial, after: float, loads: Mapping[str, StageLoad]) -> bool:
        gain, saturated = self._rules.gain, self._rules.saturated
        if after >= trial.rate * (1.0 + gain):
            return True
        relieved = after >= trial.rate * (1.0 - gain) and loads[trial.receiver.name].busy < saturated
        return relieved and any(load.busy >= saturated for load in loads.values() if load.name in self._limits)

    def _take_back(self, trial: _Trial, after: float) -> WorkerMove:
        fell = after < trial.rate * (1.0 - self._rules.gain)  # the giver may have become the bottleneck
        self._refusals.append(_Refusal(trial.giver if fell else None, trial.receiver))
        self._pause = self._rules.settle
        name, giver = trial.receiver.name, trial.move.giver
        what = f"moved a worker back from {name!r} to {giver!r}" if giver else f"ended a worker of {name!r}"
        figures = f"{name!r} started {trial.rate:.3g} items/s before it got the worker and {after:.3g} items/s after"
        return WorkerMove(name, giver, f"{what}: {figures}", undo=True)
