"""The choice among precisions that the user permits: a race of the defaults of each, before the search of sizes.

It neither measures nor reads a clock: `race_precisions` calls a function that measures the defaults of one precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from threadloom.pipeline.tuning import Comparison, TrialBudget, compare_pairs, race, rank, winner_of
from threadloom.stages.config import Precision
from threadloom.stages.tools.tune.search import Trial
from threadloom.stages.tools.tune.stage_shares import describe_bottleneck

SHARE = 0.25
"""Share of the budget of a tuning for the comparison of precisions."""
ANY = "any"
"""The value of --precision that permits all of them."""


@dataclass(frozen=True)
class PrecisionRace:
    """The result of a comparison of precisions."""

    asked: Precision
    chosen: Precision
    compared: tuple[Comparison[Precision], ...]
    reason: str
    seconds: float


def permitted(names: Sequence[str], asked: Precision) -> tuple[Precision, ...]:
    """Return the precisions in the values of --precision that are compared with the one that is asked for."""
    everything = ANY in names
    return tuple(
        precision
        for precision in Precision
        if precision not in (Precision.AUTO, asked) and (everything or precision.value in names)
    )


def race_precisions(
    asked: Precision, others: Sequence[Precision], measure: Callable[[Precision], Trial], budget: float
) -> PrecisionRace:
    """Choose among precisions in trials that take at most `budget` seconds in total.

    Another one is chosen if it is significantly faster than the precision that is asked for.
    """
    budgeted = TrialBudget(measure, budget)
    budgeted.run(asked)
    candidates = list(others)[: max(0, budgeted.room())]
    rows = race(asked, candidates, budgeted)
    best = winner_of(rows)
    before = describe_bottleneck(budgeted.latest[asked].stages)
    chosen, reason = asked, _why_kept(asked, rows)
    if best is not None:
        last = compare_pairs(best, asked, budgeted)
        rows.append(last)
        figures = f"precision={best.value} ran at {last.describe(f'precision={asked.value}')}"
        chosen = best if last.significant else asked
        because = f"; before it, {before}" if before else ""
        reason = f"{figures}{because}" if last.significant else f"precision={asked.value} is kept: {figures}"
    return PrecisionRace(asked, chosen, tuple(rows), reason, budgeted.spent)


def _why_kept(asked: Precision, rows: Sequence[Comparison[Precision]]) -> str:
    if not rows:
        return f"precision={asked.value} is kept: the budget is too short to compare precisions"
    best = max(rows, key=rank)
    return f"precision={asked.value} is kept: precision={best.choice.value} ran at {best.ratio:.2f} times its speed"
