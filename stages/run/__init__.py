"""A run in its directory: the session, its reports, plots and live display, and the estimate before it.

May import: all above.
"""

from threadloom.stages.run.estimate import estimate_run as estimate_run, estimate_text as estimate_text
from threadloom.stages.run.fitting import planned_memory as planned_memory
from threadloom.stages.run.plot_style import (
    COLOURS as COLOURS,
    INK as INK,
    LONGEST_TITLE as LONGEST_TITLE,
    style_axes as style_axes,
)
from threadloom.stages.run.plots import plot_runs as plot_runs
from threadloom.stages.run.resuming import saved_config as saved_config
from threadloom.stages.run.session import Outcome as Outcome, train as train
