"""Successive halving (Jamieson and Talwalkar, 2016): short pilots of many candidates, longer ones of the best.

This module neither trains nor reads a clock: `successive_halving` calls a function that trains one candidate for a
number of updates, so that tests run it with made-up losses.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C")

ETA = 3
"""Factor between the lengths of the pilots of two rungs, and between their numbers of candidates."""
LEAST_UPDATES = 50
"""Length of the shortest pilot that means anything."""
LEAST_CANDIDATES = 3


@dataclass(frozen=True)
class Pilot(Generic[C]):
    """One short training."""

    candidate: C
    updates: int
    loss: float
    """Validation loss at its end; inf if it diverged."""
    seconds: float


@dataclass(frozen=True)
class HalvingResult(Generic[C]):
    """The pilots in the order in which they ran, and the best candidate of the longest rung that was completed."""

    pilots: tuple[Pilot[C], ...]
    best: C
    complete: bool
    """False if the budget ended the search before the last rung."""

    def curve(self) -> list[Pilot[C]]:
        """Return the pilots of the best candidate, the shortest first."""
        return [pilot for pilot in self.pilots if pilot.candidate == self.best]


def rungs(candidates: int, updates: int) -> list[tuple[int, int]]:
    """Return (candidates, updates of each) of every rung; together they take at most `updates` updates.

    The list is empty if that is too few for pilots of `LEAST_UPDATES`.
    """
    counts = [candidates]
    while counts[-1] > 1:
        counts.append(math.ceil(counts[-1] / ETA))
    first = int(updates / sum(count * ETA**rung for rung, count in enumerate(counts)))
    return [(count, first * ETA**rung) for rung, count in enumerate(counts)] if first >= LEAST_UPDATES else []


def most_candidates(candidates: int, updates: int) -> int:
    """Return the largest number of candidates, up to `candidates`, for which `rungs` has a plan; 0 if too few."""
    return next((count for count in range(candidates, LEAST_CANDIDATES - 1, -1) if rungs(count, updates)), 0)


def least_updates() -> int:
    """Return the updates of the shortest search."""
    return next(updates for updates in itertools.count(LEAST_UPDATES) if rungs(LEAST_CANDIDATES, updates))


def successive_halving(
    candidates: Sequence[C], plan: Sequence[tuple[int, int]], budget: float, train: Callable[[C, int], Pilot[C]]
) -> HalvingResult[C]:
    """Return the result of the pilots of `plan`, as `rungs` makes it, which end before `budget` seconds have passed.

    The first candidate is the fallback: it is the best if no rung is completed, and of equal losses the earlier wins.
    A pilot is begun only if it is expected to end in time: a rung's first as long as its updates at the pace of the
    pilots before, the next as long as the longest of the rung.
    """
    pilots: list[Pilot[C]] = []
    left, best, spent = list(candidates), candidates[0], 0.0
    for count, updates in plan:
        rung: list[Pilot[C]] = []
        for candidate in left[:count]:
            if spent + _expected(pilots, rung, updates) > budget:
                return HalvingResult(tuple(pilots), best, complete=False)
            pilot = train(candidate, updates)
            spent += pilot.seconds
            pilots.append(pilot)
            rung.append(pilot)
        rung.sort(key=lambda pilot: pilot.loss)
        left = [pilot.candidate for pilot in rung]
        best = left[0]
    return HalvingResult(tuple(pilots), best, complete=True)


def _expected(pilots: Sequence[Pilot[C]], rung: Sequence[Pilot[C]], updates: int) -> float:
    if rung:
        return max(pilot.seconds for pilot in rung)
    return max((pilot.seconds / pilot.updates for pilot in pilots), default=0.0) * updates


def updates_to_loss(curve: Sequence[Pilot[C]], goal: float) -> float:
    """Return the updates at which a candidate is expected to reach a loss, from its two longest pilots; inf if unknown.

    The loss is assumed to fall linearly with the logarithm of the number of updates. Beyond the longest pilot that is
    an extrapolation, which can be off by a factor of several.
    """
    if len(curve) < 2:
        return math.inf
    first, second = curve[-2:]
    slope = (second.loss - first.loss) / math.log(second.updates / first.updates)
    if not slope < 0.0:
        return math.inf if second.loss > goal else float(second.updates)
    exponent = (goal - second.loss) / slope
    return second.updates * math.exp(min(exponent, 50.0))
