"""Tuning: the workers and capacities with which a graph is fastest on this machine, found by short runs.

    from threadloom.pipeline.tuning import tune_graph

    result = tune_graph(build, budget=60)  # build() returns a new Graph
    print(result.reason, result.chosen)

    racing      comparisons of choices by trials in alternated rounds, for any kind of choice
    sizes       the workers and capacities of a graph, and which of them may vary
    proposals   which sizes to try after a trial, from its bottleneck
    trials      measures one choice in a short run
    search      the search: proposals, races, and the comparison with the declared sizes
    tune        `tune_graph`

`racing`, `proposals` and `search` decide, without threads and clocks; `trials` measures.

May import: all above.
"""

from threadloom.pipeline.tuning.proposals import Proposal, explain, propose
from threadloom.pipeline.tuning.racing import (
    GAIN,
    MARGIN,
    MIN_PAIRS,
    Comparison,
    TrialBudget,
    compare_pairs,
    race,
    rank,
    why_no_winner,
    winner_of,
)
from threadloom.pipeline.tuning.search import GraphTuning, SizesTried, search_sizes
from threadloom.pipeline.tuning.sizes import Freedom, GraphSizes, StageSize
from threadloom.pipeline.tuning.trials import GraphTrial, GraphTrials, GraphTuningError
from threadloom.pipeline.tuning.tune import graph_trials, run_trials, tune_graph

__all__ = [
    "GAIN",
    "MARGIN",
    "MIN_PAIRS",
    "Comparison",
    "Freedom",
    "GraphSizes",
    "GraphTrial",
    "GraphTrials",
    "GraphTuning",
    "GraphTuningError",
    "Proposal",
    "SizesTried",
    "StageSize",
    "TrialBudget",
    "compare_pairs",
    "explain",
    "graph_trials",
    "propose",
    "race",
    "rank",
    "run_trials",
    "search_sizes",
    "tune_graph",
    "why_no_winner",
    "winner_of",
]
