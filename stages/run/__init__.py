"""A run in its directory: the session, its reports, plots and live display, and the estimate before it.

May import: all above.
"""

from threadloom.stages.run.estimate import estimate_run, estimate_text
from threadloom.stages.run.plots import plot_runs
from threadloom.stages.run.session import Outcome, saved_config, train

__all__ = [
    "Outcome",
    "estimate_run",
    "estimate_text",
    "plot_runs",
    "saved_config",
    "train",
]
