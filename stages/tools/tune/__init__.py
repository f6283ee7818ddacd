"""`threadloom tune`: search for thread counts and sizes.

May import: models to run.
"""

from threadloom.stages.tools.tune.tuning import RANDOM_VOCABULARY, Trials, run_tuning

__all__ = [
    "RANDOM_VOCABULARY",
    "Trials",
    "run_tuning",
]
