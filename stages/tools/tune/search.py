"""The search behind `threadloom tune`: which settings to try, in what order, and when a difference counts.

Nothing here measures, waits or reads a clock: `search` is given a function that measures one choice and says what that
cost, so that a test drives it with invented figures. `stages.tools.tune.tuning` measures.

How: one axis after another (micro-batch, stage threads, lanes, ...), each a race between the best so far and its
alternatives. A round of a race measures everybody once, every other round in the opposite order, and compares each
alternative with the best of that same round only: a machine that slows down for a while slows both sides. From the
second round on the slower half leaves. What wins all of it meets the defaults once more in alternated pairs, and the
defaults stay unless it is ahead in all of the pairs (one of eight may be lost), by two in a hundred or more.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from threadloom.stages.resolve import TUNED_KEYS, TunedSettings, Value, format_settings
from threadloom.stages.tools.tune.space import AXES, ROUNDING, Axis, Facts

MARGIN = 0.01
"""A race is won by this part at least; less is not worth another setting."""
GAIN = 0.02
"""The defaults give way to this much at least."""
HOPELESS = 0.8
"""What runs at less than this part of the best of its first round leaves at once."""
RACE_ROUNDS = 3
MIN_PAIRS, PAIRS = 4, 8
"""Of the last comparison with the defaults: without the least of them there is no result, more are not needed."""


@dataclass(frozen=True)
class Trial:
    """What one short run measured."""

    tokens_per_s: float
    seconds: float
    """That the trial took in all, setting up included."""


Measure = Callable[[TunedSettings], Trial]


@dataclass(frozen=True)
class Comparison:
    """One choice against another, round by round."""

    axis: str
    choice: TunedSettings
    base: TunedSettings
    rates: tuple[float, ...]  # tokens per second, one a round
    ratios: tuple[float, ...]  # to the base in the same round

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The ratios' quartiles: half of all rounds lie between. The extremes where there are fewer than four."""
        if len(self.ratios) < 4:
            return min(self.ratios), max(self.ratios)
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def changes_rounding(self) -> bool:
        """Whether the weights come out with other last bits than with the base."""
        return any(name in ROUNDING for name in self.choice.differences(self.base))


@dataclass(frozen=True)
class Findings:
    """What a search found."""

    default: TunedSettings
    chosen: TunedSettings
    reason: str
    ratio: float | None
    """Of the choice to the defaults; None where the defaults stay."""
    spread: tuple[float, float] | None
    compared: tuple[Comparison, ...]
    skipped: tuple[str, ...]
    """The axes that the budget did not reach."""
    trials: int
    seconds: float


@dataclass
class _Ledger:
    """What was spent, and whether more may be. A trial is expected to cost what the dearest of the last ones did."""

    measure: Measure
    budget: float
    spent: float = 0.0
    costs: list[float] = field(default_factory=list)

    def run(self, choice: TunedSettings) -> float:
        trial = self.measure(choice)
        self.spent += trial.seconds
        self.costs.append(trial.seconds)
        return trial.tokens_per_s

    def left(self) -> int:
        """How many trials more there is time for."""
        return int((self.budget - self.spent) / max(self.costs[-8:], default=math.inf))


def search(
    default: TunedSettings,
    facts: Facts,
    measure: Measure,
    budget: float,
    fixed: Mapping[str, Value] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Look for a faster choice than `default` with trials that take `budget` seconds in all.

    `fixed`: the fields that must keep their value. `say` hears of each axis as it is begun.
    """
    ledger = _Ledger(measure, budget)
    best, compared, skipped = default, [], []
    for axis in AXES:
        candidates = _candidates(axis, best, facts, fixed or {})
        if not candidates:
            continue
        if not ledger.costs:
            ledger.run(best)
        # What is kept back is for the last comparison, without which a win means nothing.
        room = (ledger.left() - 2 * MIN_PAIRS) // 2 - 1
        if room < len(candidates):
            skipped.append(axis.name if room < 1 else f"some of {axis.name}")
            candidates = candidates[: max(0, room)]
        if not candidates:
            continue
        plural = "s" if len(candidates) > 1 else ""
        say(f"{axis.name}: {len(candidates)} alternative{plural} to {format_settings(_of_axis(best, candidates))}")
        rows = _race(axis.name, best, candidates, ledger)
        compared += rows
        winner = max((row for row in rows if len(row.ratios) > 1), key=_standing, default=None)
        if winner is not None and winner.ratio > 1.0 + MARGIN:
            best = winner.choice
    if best == default:
        reason = _reason_to_stay(compared, skipped)
        chosen, last = default, None
    else:
        say(f"{format_settings(best.differences(default))} against the defaults")
        last = _duel(best, default, ledger)
        compared.append(last)
        chosen, reason = _verdict(last)
    won = last if last is not None and chosen != default else None
    return Findings(
        default=default,
        chosen=chosen,
        reason=reason,
        ratio=won.ratio if won else None,
        spread=won.spread if won else None,
        compared=tuple(compared),
        skipped=tuple(skipped),
        trials=len(ledger.costs),
        seconds=ledger.spent,
    )


def _candidates(axis: Axis, best: TunedSettings, facts: Facts, fixed: Mapping[str, Value]) -> list[TunedSettings]:
    found = dict.fromkeys(
        msgspec.structs.replace(choice, slots=fixed.get("slots", choice.slots))
        for choice in axis.alternatives(best, facts)
    )
    return [choice for choice in found if choice != best and not choice.differences(best).keys() & fixed.keys()]


def _of_axis(base: TunedSettings, candidates: Sequence[TunedSettings]) -> dict[str, Value]:
    """The values of the base in the fields that its alternatives change."""
    changed = {name for choice in candidates for name in choice.differences(base)}
    return {name: getattr(base, name) for name in TUNED_KEYS if name in changed}


def _standing(row: Comparison) -> tuple[int, float]:
    return len(row.ratios), row.ratio


def _race(axis: str, base: TunedSettings, candidates: Sequence[TunedSettings], ledger: _Ledger) -> list[Comparison]:
    """Run rounds until one candidate is left, the slower half leaving from the second round on."""
    rates: dict[TunedSettings, list[float]] = {choice: [] for choice in candidates}
    ratios: dict[TunedSettings, list[float]] = {choice: [] for choice in candidates}
    left, done = list(candidates), 0
    while left and (done < RACE_ROUNDS or len(left) > 1):
        if ledger.left() < len(left) + 1 + 2 * MIN_PAIRS:
            break
        order = [base, *left] if done % 2 == 0 else [*reversed(left), base]
        measured = {choice: ledger.run(choice) for choice in order}
        for choice in left:
            rates[choice].append(measured[choice])
            ratios[choice].append(measured[choice] / measured[base])
        done += 1
        left.sort(key=lambda choice: statistics.median(ratios[choice]), reverse=True)
        if done == 1:
            ahead = max(1.0, ratios[left[0]][0])
            left = [choice for choice in left if ratios[choice][0] >= HOPELESS * ahead]
        else:
            left = left[: math.ceil(len(left) / 2)]
    return [
        Comparison(axis, choice, base, tuple(rates[choice]), tuple(ratios[choice]))
        for choice in candidates
        if ratios[choice]
    ]


def _duel(best: TunedSettings, default: TunedSettings, ledger: _Ledger) -> Comparison:
    rates: list[float] = []
    ratios: list[float] = []
    while len(ratios) < PAIRS and (len(ratios) < MIN_PAIRS or ledger.left() >= 2):
        order = (default, best) if len(ratios) % 2 == 0 else (best, default)
        measured = {choice: ledger.run(choice) for choice in order}
        rates.append(measured[best])
        ratios.append(measured[best] / measured[default])
    return Comparison("all together", best, default, tuple(rates), tuple(ratios))


def _verdict(last: Comparison) -> tuple[TunedSettings, str]:
    """Take the new choice if luck is no likely reason: equals win 7 of 8 pairs 9 times in 256, all of 4 once in 16."""
    pairs, won = len(last.ratios), sum(ratio > 1.0 for ratio in last.ratios)
    low, high = last.spread
    best = format_settings(last.choice.differences(last.base))
    figures = (
        f"{last.ratio:.2f} times the defaults (half of the pairs between {low:.2f} and {high:.2f}), "
        f"ahead in {won} of {pairs} alternated pairs"
    )
    if last.ratio >= 1.0 + GAIN and pairs - won <= pairs // PAIRS:
        return last.choice, f"{best} ran at {figures}"
    words = "slower" if not won else "within the noise"
    return last.base, f"the defaults stay: the best found, {best}, ran at {figures}, which is {words}"


def _reason_to_stay(compared: Sequence[Comparison], skipped: Sequence[str]) -> str:
    if not compared:
        return "the defaults stay: " + (
            "the budget is too short to compare anything with them" if skipped else "every setting was given"
        )
    best = max(compared, key=_standing)
    tried = f"of {len(compared)} alternatives none was more than {MARGIN:.0%} faster in its own comparison"
    return f"the defaults stay: {tried}, {format_settings(best.choice.differences(best.base))} came to {best.ratio:.2f}"
