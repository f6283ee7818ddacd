"""`tune_graph`: the search with trials of a real graph."""

from collections.abc import Callable, Collection
from dataclasses import replace

from threadloom.pipeline.tuning.search import GraphTuning, SizesTried, search_sizes
from threadloom.pipeline.tuning.sizes import Build
from threadloom.pipeline.tuning.trials import GraphTrials

SHARE = 60
"""The budget has about this many trials."""
SHORTEST, LONGEST = 0.1, 2.0
"""Limits in seconds of the measured interval of a trial."""


def graph_trials(build: Build, budget: float, *, fixed: Collection[str] = (), any_order: bool = False) -> GraphTrials:
    """Return the trials of a graph, of a duration that fits the budget."""
    seconds = min(LONGEST, max(SHORTEST, budget / SHARE))
    return GraphTrials(build, seconds, fixed, any_order, max(seconds, 2.0 * budget / SHARE))


def run_trials(
    trials: GraphTrials,
    budget: float,
    on_progress: Callable[[str], None] = lambda _: None,
    on_tried: Callable[[SizesTried], None] = lambda _: None,
) -> GraphTuning:
    """Search with these trials for `budget` seconds."""
    try:
        spent = trials.calibrate()
        found = search_sizes(trials.declared, trials.freedoms, trials, budget - spent, on_progress, on_tried)
        return replace(found, seconds=found.seconds + spent)
    finally:
        trials.restore()


def tune_graph(
    build: Build, budget: float = 60.0, *, fixed: Collection[str] = (), any_order: bool = False
) -> GraphTuning:
    """Find the workers and capacities with which a graph processes the most items per second.

    `build` is a function without arguments that returns a new graph, so that every trial begins with the same items; or
    a graph, if it can be started several times: its sources are not iterators, and its functions keep no state.
    `budget` is the duration of the search in seconds. Stages named in `fixed` keep their sizes. A stage with one worker
    gets several only with `ordered=True`, unless its input has no fixed order or `any_order` is True; its function must
    then be safe to call from several threads.

    The declared sizes are kept unless others are faster in alternated runs. Raises GraphTuningError if the graph fails,
    yields nothing, or is not the same every time.
    """
    return run_trials(graph_trials(build, budget, fixed=fixed, any_order=any_order), budget)
