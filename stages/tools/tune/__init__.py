"""`threadloom tune`: search for thread counts and sizes.

May import: models to run.
"""

from threadloom.stages.tools.tune.space import Choice
from threadloom.stages.tools.tune.tune import RANDOM_VOCABULARY, Trials, run_tuning, tuned_settings

__all__ = [
    "RANDOM_VOCABULARY",
    "Choice",
    "Trials",
    "run_tuning",
    "tuned_settings",
]
