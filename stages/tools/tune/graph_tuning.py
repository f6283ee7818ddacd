"""`threadloom tune --pipeline`: the workers and capacities of a graph of the user's own."""

import math
from collections.abc import Collection
from pathlib import Path

from loguru import logger
from rich.console import Console

from threadloom.pipeline import PipelineError
from threadloom.pipeline.tuning import GraphTrials, GraphTuning, SizesTried, graph_trials, run_trials
from threadloom.stages.config import InputError
from threadloom.stages.machine import load_warning
from threadloom.stages.tools.common import report_console
from threadloom.stages.tools.tune.graph_loading import load_graph
from threadloom.stages.tools.tune.graph_table import (
    graph_conclusions,
    newly_parallel,
    sizes_table,
    values_to_write,
)
from threadloom.stages.tools.tune.progress import shown_progress


class PipelineTuningError(InputError):
    """A graph that cannot be tuned."""

    def _message(self) -> str:
        return f"{self.subject}: {self.got}"


def run_graph_tuning(
    place: str,
    budget: float,
    fixed: Collection[str] = (),
    any_order: bool = False,
    picture: Path | None = None,
    console: Console | None = None,
) -> GraphTuning:
    """Find the fastest workers and capacities of the graph at `place` (module:graph) in `budget` seconds; print them.

    `picture` is the file of the picture, if any. Raises InputError for a graph that cannot be loaded or tuned. What was
    measured before an interrupt is printed.
    """
    if not 0 < budget < math.inf:
        raise InputError("--budget", expected="a finite number of seconds above 0", got=f"{budget:g}")
    console = console or report_console(least=80, in_files=120)
    if warning := load_warning():
        logger.warning(warning)
    if picture is not None:
        from threadloom.stages.tools.tune.picture import check_picture_path  # loads the kernels, which graphs need not

        check_picture_path(picture)
    build = load_graph(place)
    try:
        trials = graph_trials(build, budget, fixed=fixed, any_order=any_order)
        logger.info("items are counted at {}", " and ".join(trials.counted))
        result = _searched(trials, budget, console)
    except PipelineError as error:
        raise PipelineTuningError(place, "a graph that can be tuned", str(error)) from error
    console.print(sizes_table(result.tried, trials.freedoms))
    for sentence in graph_conclusions(result, trials.freedoms):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    _print_values(result, trials, console)
    if picture is not None:
        _draw(result, trials.name, picture, console)
    return result


def _draw(result: GraphTuning, name: str, picture: Path, console: Console) -> None:
    from threadloom.stages.tools.tune.picture import picture_of_graph, write_picture

    if write_picture(picture_of_graph(result, name), picture):
        console.print(f"Picture: {picture}", highlight=False, soft_wrap=True, markup=False)


def _searched(trials: GraphTrials, budget: float, console: Console) -> GraphTuning:
    tried: list[SizesTried] = []
    try:
        with shown_progress(console) as on_progress:
            return run_trials(trials, budget, on_progress, tried.append)
    except KeyboardInterrupt:
        if tried:
            console.print(sizes_table(tried, trials.freedoms))
        console.print("Stopped before the comparison with the declared sizes: nothing was chosen.", highlight=False)
        raise


def _print_values(result: GraphTuning, trials: GraphTrials, console: Console) -> None:
    lines = values_to_write(result, trials.freedoms)
    if lines:
        console.print("Write:")
    for line in lines:
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
    if names := newly_parallel(result, trials.freedoms):
        console.print(
            f"The functions of {' and '.join(names)} are then called by several threads at once, as in the trials: "
            f"they must not change shared data. --fixed {names[0]} keeps a stage as it is.",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
