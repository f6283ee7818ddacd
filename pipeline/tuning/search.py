"""The search for the workers and capacities of a graph, guided by the bottleneck of the best sizes so far.

It neither measures nor reads a clock: `search_sizes` calls a function that measures one choice. `GraphTrials` measures;
tests simulate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from threadloom.pipeline.observe import diagnose
from threadloom.pipeline.tuning.proposals import Proposal, explain, propose
from threadloom.pipeline.tuning.racing import (
    MARGIN,
    MIN_PAIRS,
    Comparison,
    TrialBudget,
    compare_pairs,
    race,
    why_no_winner,
    winner_of,
)
from threadloom.pipeline.tuning.sizes import Freedom, GraphSizes
from threadloom.pipeline.tuning.trials import GraphTrial


@dataclass(frozen=True)
class SizesTried(Comparison[GraphSizes]):
    """Sizes of a graph compared with the best ones before, and why they were tried."""

    why: str
    """The bottleneck of the base, with its figures."""
    failure: str = ""
    """The error of the last trial, if it failed."""
    accepted: bool = False
    """True if the search continued from these sizes."""


@dataclass(frozen=True)
class GraphTuning:
    """The result of a tuning."""

    declared: GraphSizes
    chosen: GraphSizes
    reason: str
    """Why these sizes, as a sentence."""
    tried: tuple[SizesTried, ...]
    """All comparisons in order; the last one is that with the declared sizes, if any was faster in a race."""
    final: Comparison[GraphSizes] | None
    """The comparison with the declared sizes; None if none was faster in a race."""
    bottleneck: str
    """What limits the chosen sizes, with its figures."""
    limiting: str | None
    """The stage that limits them; None if there is no single one."""
    measured: tuple[tuple[GraphSizes, float], ...]
    """The sizes of every trial in order, with the items per second; 0 if the trial failed."""
    seconds: float
    complete: bool
    """True if the search ended for want of proposals, and not of time."""

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(self.measured)


def search_sizes(
    declared: GraphSizes,
    freedoms: Mapping[str, Freedom],
    measure: Callable[[GraphSizes], GraphTrial],
    budget: float,
    on_progress: Callable[[str], None] = lambda _: None,
    on_tried: Callable[[SizesTried], None] = lambda _: None,
) -> GraphTuning:
    """Search for sizes that are faster than the declared ones, with trials that take `budget` seconds in total.

    `on_progress` is called before each race, with the bottleneck, and `on_tried` after it, with each comparison.
    """
    budgeted = TrialBudget(measure, budget)
    budgeted.run(declared)
    best, seen, tried, complete = declared, {declared}, list[SizesTried](), True
    while True:
        proposals = propose(best, budgeted.latest[best].statistics, freedoms, seen)
        if not proposals:
            break
        room = budgeted.room()
        complete &= room >= len(proposals)
        if room < 1:
            break
        proposals = proposals[:room]
        on_progress(f"{len(proposals)} alternative{'s' if len(proposals) > 1 else ''}, because {proposals[0].why}")
        seen |= {each.sizes for each in proposals}
        rows = [_with_reason(row, proposals, budgeted) for row in race(best, [p.sizes for p in proposals], budgeted)]
        winner = _smallest_winner(rows)
        complete &= len(rows) == len(proposals) and any(len(row.ratios) > 1 or row.ratio < 1.0 for row in rows)
        rows = [replace(row, accepted=row.choice == winner) for row in rows]
        tried += rows
        for row in rows:
            on_tried(row)
        best = winner or best
    final = None
    if best != declared:
        on_progress("the best sizes are compared with the declared ones")
        final = compare_pairs(best, declared, budgeted)
    chosen = best if final is not None and final.significant else declared
    return GraphTuning(
        declared=declared,
        chosen=chosen,
        reason=_reason(final, tried),
        tried=tuple(tried),
        final=final,
        bottleneck=explain(budgeted.latest[chosen].statistics),
        limiting=diagnose(budgeted.latest[chosen].statistics).stage,
        measured=tuple(budgeted.scores),
        seconds=budgeted.spent,
        complete=complete,
    )


def _with_reason(
    row: Comparison[GraphSizes], proposals: list[Proposal], budgeted: TrialBudget[GraphSizes, GraphTrial]
) -> SizesTried:
    why = next(each.why for each in proposals if each.sizes == row.choice)
    return SizesTried(row.choice, row.base, row.rates, row.ratios, why, budgeted.latest[row.choice].failure)


def _smallest_winner(rows: list[SizesTried]) -> GraphSizes | None:
    """Return the winner of a race, or sizes with fewer workers that were as fast; None if the base was."""
    winner = winner_of(rows)
    if winner is None:
        return None
    best = next(row for row in rows if row.choice == winner)
    equal = [row for row in rows if len(row.ratios) > 1 and row.ratio > max(1.0 + MARGIN, best.ratio - MARGIN)]
    return min(equal or [best], key=lambda row: row.choice.total).choice


def _reason(final: Comparison[GraphSizes] | None, tried: list[SizesTried]) -> str:
    if final is not None:
        figures = f"ran at {final.describe('the declared ones')}"
        if final.significant:
            return f"the new sizes {figures}"
        conclusion = "slower" if not final.won else "within the noise"
        return f"the declared sizes are kept: the best others {figures}, which is {conclusion}"
    if not tried:
        return f"the declared sizes are kept: the budget is too short for a comparison of {2 * MIN_PAIRS + 4} trials"
    return f"the declared sizes are kept: {why_no_winner(tried)}"
